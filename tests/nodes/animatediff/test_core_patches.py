"""Nodes that patch core's image UNet act on the clip model as they do there.

With a motion module that adds nothing, AnimateDiff's frames are images of the checkpoint: core's
own UNet, with the same node of ComfyUI before it, is the reference.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

FRAMES, SIDE = 3, 16
NODES = {
    "freelunch.FreeU": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "freelunch.FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "pag.PerturbedAttentionGuidance": {"scale": 3.0},
    "sag.SelfAttentionGuidance": {"scale": 0.7, "blur_sigma": 2.0},
    "hypertile.HyperTile": {
        "tile_size": 64,
        "swap_size": 1,
        "max_depth": 0,
        "scale_depth": False,
    },
    "tomesd.TomePatchModel": {"ratio": 0.5},
    "model_downscale.PatchModelAddDownscale": {
        "block_number": 3,
        "downscale_factor": 2.0,
        "start_percent": 0.0,
        "end_percent": 0.9,
        "downscale_after_skip": True,
        "downscale_method": "bicubic",
        "upscale_method": "bicubic",
    },
}


@pytest.fixture
def silent(mcm: Any, tiny: Any) -> Any:
    """A motion module whose layers over time add nothing."""
    weights = {
        name: torch.zeros_like(value) if ".proj_out." in name else value
        for name, value in tiny.adapter.state_dict().items()
    }
    return mcm.motion_module.motion_module(weights, "silent")


def run_node(name: str, **values: Any) -> Any:
    """The first output of a node of core, written in either of its two ways."""
    file, kind = name.split(".")
    node = getattr(import_module(f"comfy_extras.nodes_{file}"), kind)
    found = node.execute(**values) if hasattr(node, "execute") else None
    if found is None:
        found = getattr(node(), node.FUNCTION)(**values)
    return getattr(found, "result", found)[0]


@torch.inference_mode()
def sample(model: Any, steps: int = 2) -> torch.Tensor:
    """Latents (FRAMES, 4, h, w) of core's euler at CFG 4; random draws of patches start alike."""
    import comfy.sample

    generator = torch.Generator().manual_seed(4)
    text = torch.randn(1, 77, 768, generator=generator)
    latent = torch.zeros(FRAMES, 4, SIDE, SIDE)
    noise = comfy.sample.prepare_noise(latent, 1)
    torch.manual_seed(0)
    return comfy.sample.sample(
        model, noise, steps, 4.0, "euler", "normal", [[text, {}]], [[torch.zeros_like(text), {}]],
        latent, seed=1, disable_pbar=True,
    ).clone()  # fmt: skip


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
def test_a_patch_acts_as_on_the_image_model(mcm, sd15, silent, name, first):
    """Also where its node stands before AnimateDiff Motion Module."""
    clip = mcm.animatediff.apply_motion_module(sd15, silent)
    image = sd15.clone()
    image.add_object_patch("model_sampling", clip.get_model_object("model_sampling"))
    wanted = sample(run_node(name, model=image, **NODES[name]))
    if first:
        patched = mcm.animatediff.apply_motion_module(
            run_node(name, model=sd15, **NODES[name]), silent
        )
    else:
        patched = run_node(name, model=clip, **NODES[name])
    effect = relative(sample(clip), wanted)
    assert effect > 2e-4
    # ToMe merges the most similar tokens: rounding decides between nearly equal ones.
    assert relative(sample(patched), wanted) <= (0.2 * effect if "tomesd" in name else 1e-5)
    assert relative(sample(clip), sample(image)) <= 1e-5


@pytest.mark.parametrize("name", ["freelunch.FreeU", "pag.PerturbedAttentionGuidance"])
def test_patches_leave_nothing_behind(clip_model, name):
    wanted = sample(clip_model)
    assert relative(sample(run_node(name, model=clip_model, **NODES[name])), wanted) > 2e-4
    assert torch.equal(sample(clip_model), wanted)
    unet = clip_model.model.diffusion_model
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in unet.modules())


def test_patches_without_a_place_are_told_in_every_run(clip_model, caplog):
    clip = clip_model.clone()
    clip.set_model_patch(lambda x, options: x, "middle_patch")
    for _ in range(2):
        caplog.clear()
        sample(clip, steps=1)
        assert "no effect on a video model: middle_patch" in caplog.text


def test_models_merge_block_by_block(mcm, load, tiny, motion):
    """Model Merge Blocks: each part of the UNet by its own share."""
    from comfy_extras.nodes_model_merging import ModelMergeBlocks

    state = tiny.unet2d.state_dict()
    other = {name: value + 1.0 for name, value in state.items()}
    first, second = (
        mcm.animatediff.apply_motion_module(load(each), motion) for each in (state, other)
    )
    shares = {"input": 1.0, "middle": 0.25, "out": 0.5}
    (merged,) = ModelMergeBlocks().merge(first, second, **shares)
    merged.patch_model(torch.device("cpu"))
    try:
        found = merged.model.diffusion_model.state_dict()
        for name, value in state.items():
            part = {"mid": "middle", "up_": "out"}.get(name[:3], "input")
            part = "out" if name.startswith(("conv_norm_out", "conv_out")) else part
            wanted = value + (1 - shares[part])
            assert torch.allclose(found[name], wanted, atol=1e-5), name
    finally:
        merged.unpatch_model(torch.device("cpu"))


def test_models_of_two_kinds_are_not_merged(clip_model, sd15):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    with pytest.raises(ValueError, match="cannot be merged.*of the same kind"):
        ModelMergeSimple().merge(clip_model, sd15, 0.5)


def test_every_layer_has_a_name_of_cores_and_its_own_back(comfy, clip_model):
    blocks = import_module(f"{comfy.__name__}.nodes.native.blocks")
    unet = clip_model.model.diffusion_model
    image = [*range(12)]
    assert [layer.place[1] for layer in blocks.down_layers(unet)] == image
    assert [layer.place[1] for layer in blocks.up_layers(unet)] == image
    for path in unet.state_dict():
        key = f"diffusion_model.{path}"
        named = blocks.to_core_key(key, unet)
        assert named != key
        assert blocks.from_core_key(named) == key
        assert blocks.from_core_key(key) == key
