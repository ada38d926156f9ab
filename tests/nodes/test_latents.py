"""LATENTs know how long one video is, on every way through ComfyUI's nodes to the sampler."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch

FRAMES, SIDE, SEED = 8, 4, 5


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def student(native, tiny_model):
    loaded = native("model").load_native_model(tiny_model, "fp32")
    return native("sampling").apply_model_sampling(loaded)


def empty(native, videos=2, frames=FRAMES):
    return native("latents").empty_latents(SIDE * 8, SIDE * 8, frames, videos)


def sample(model, latent, seed=SEED):
    """The LATENT after core's KSampler node: 2 steps, lcm, simple, CFG 1."""
    import nodes

    generator = torch.Generator().manual_seed(2)
    text = [[torch.randn(1, 77, 64, generator=generator), {}]]
    with torch.inference_mode():
        (out,) = nodes.common_ksampler(model, seed, 2, 1.0, "lcm", "simple", text, text, latent)
    return out


def custom(native, model, latent, seed=SEED):
    """The LATENT after core's SamplerCustomAdvanced with the pack's noise, sampler and levels."""
    from comfy_extras import nodes_custom_sampler as core

    sampling = native("sampling")
    generator = torch.Generator().manual_seed(2)
    guider = core.Guider_Basic(model)
    guider.set_conds([[torch.randn(1, 77, 64, generator=generator), {}]])
    node = core.SamplerCustomAdvanced
    run = node.execute if hasattr(node, "execute") else node().sample
    with torch.inference_mode():
        noise, sampler = sampling.StartNoise(seed, "video"), sampling.few_step_sampler("video")
        found = run(noise, guider, sampler, sampling.few_step_sigmas(model, 2), latent)
    return getattr(found, "result", found)[0]


def near(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def test_two_videos_stay_two_with_a_model_that_was_not_connected(native, student):
    """KSampler's MODEL did not pass through Empty Latent Video."""
    wanted = native("latents").model_for_frames(student, FRAMES)
    latent = {"samples": torch.zeros(2 * FRAMES, 4, SIDE, SIDE)}
    two = sample(wanted, latent)["samples"]
    one_long = sample(student, latent)["samples"]
    assert not near(one_long, two)
    assert torch.equal(sample(student, empty(native))["samples"], two)


def test_what_was_sampled_can_be_sampled_again(native, student):
    """Two KSamplers in a row; upscaled, copied and joined latents in between."""
    from nodes import LatentUpscale, RepeatLatentBatch

    first = sample(student, empty(native))
    frames_of = native("latents").frames_of
    assert frames_of(first["samples"]) == FRAMES
    (larger,) = LatentUpscale().upscale(first, "bilinear", SIDE * 16, SIDE * 16, "disabled")
    (twice,) = RepeatLatentBatch().repeat(first, 2)
    joined = torch.cat([first["samples"], first["samples"]])
    for samples in (larger["samples"], twice["samples"], copy.deepcopy(first["samples"]), joined):
        assert frames_of(samples) == FRAMES
    known = native("latents").model_for_frames(student, FRAMES)
    plain = {"samples": larger["samples"].as_subclass(torch.Tensor)}
    assert torch.equal(sample(student, larger)["samples"], sample(known, plain)["samples"])


def test_latents_that_were_cut_no_longer_say_their_frames(native):
    samples = empty(native)["samples"]
    assert native("latents").frames_of(samples) == FRAMES
    for other in (samples[:12], samples[0], samples.movedim(0, 3), samples.sum(0, keepdim=True)):
        assert native("latents").frames_of(other) is None
    assert type(torch.nn.functional.conv2d(samples, torch.ones(4, 4, 1, 1))) is torch.Tensor
    other = torch.zeros(6, 4, SIDE, SIDE)
    assert native("latents").frames_of(torch.cat([samples, other])) is None


CHANGES = {
    "LatentFlip": {"flip_method": "x-axis: vertically"},
    "LatentRotate": {"rotation": "90 degrees"},
    "LatentUpscale": {
        "upscale_method": "bislerp", "width": 64, "height": 64, "crop": "center",
    },
    "LatentUpscaleBy": {"upscale_method": "bislerp", "scale_by": 1.5},
    "LatentBlend": {"samples2": None, "blend_factor": 0.5},
    "LatentComposite": {"samples_from": None, "x": 0, "y": 0, "feather": 0},
    "LatentCrop": {"width": 32, "height": 32, "x": 0, "y": 0},
    "LatentFromBatch": {"batch_index": 0, "length": FRAMES},
    "RepeatLatentBatch": {"amount": 2},
    "LatentMultiply": {"multiplier": 0.5},
    "LatentAdd": {"samples2": None},
    "LatentSubtract": {"samples2": None},
    "LatentBatch": {"samples2": None},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_latent_node_of_core_hands_the_frames_on(native, name):
    import_module("comfy_extras.nodes_post_processing")  # first: the two import each other
    nodes_latent = import_module("comfy_extras.nodes_latent")
    import nodes

    found = getattr(nodes, name, None) or getattr(nodes_latent, name)
    latent = {"samples": native("latents").video_latents(torch.randn(16, 4, 8, 8), FRAMES)}
    named = {key: latent if value is None else value for key, value in CHANGES[name].items()}
    first = {
        "LatentComposite": "samples_to", "LatentBlend": "samples1", "LatentAdd": "samples1",
        "LatentSubtract": "samples1", "LatentBatch": "samples1",
    }.get(name, "samples")  # fmt: skip
    made = found if hasattr(found, "define_schema") else found()
    run = getattr(made, getattr(found, "FUNCTION", "execute"))
    out = run(**{first: latent}, **named)
    (changed,) = getattr(out, "result", out)
    assert native("latents").frames_of(changed["samples"]) == FRAMES


@pytest.fixture
def remarks(native, monkeypatch):
    """What nodes are told to show."""
    told = []
    monkeypatch.setattr(native("latents"), "tell", told.append)
    return told


def test_latents_that_may_be_several_videos_are_remarked_on(native, student, remarks):
    from dataclasses import replace

    info = student.model.mcm_info
    student.model.mcm_info = replace(info, default_frames=FRAMES)
    try:
        sample(student, {"samples": torch.zeros(2 * FRAMES, 4, SIDE, SIDE)})
        (said,) = remarks
        assert "16 frames and does not store" in said and "2 videos of 8 frames" in said
        sample(student, empty(native))
        sample(student, {"samples": torch.zeros(FRAMES, 4, SIDE, SIDE)})
        assert len(remarks) == 1
    finally:
        student.model.mcm_info = info


def test_cores_own_context_windows_are_refused_with_the_way_out(native, student):
    clone = student.clone()
    clone.model_options["context_handler"] = object()
    with pytest.raises(ValueError, match="Use the node 'MCM Context Windows'"):
        sample(clone, empty(native, 1))


@pytest.mark.parametrize("name", ["hypertile.HyperTile", "tomesd.TomePatchModel"])
def test_a_patch_that_changed_nothing_is_named_in_every_run(native, student, monkeypatch, name):
    told = []
    monkeypatch.setattr(native("notices"), "tell", told.append)
    module, kind = name.split(".")
    node = getattr(import_module(f"comfy_extras.nodes_{module}"), kind)
    arguments = {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}
    if kind == "TomePatchModel":
        arguments = {"ratio": 0.0}
    run = node.execute if hasattr(node, "execute") else node().patch
    out = run(student, **arguments)
    patched = getattr(out, "result", out)[0]
    plain = sample(student, empty(native, 1))["samples"]
    for runs in (1, 2):
        assert near(sample(patched, empty(native, 1))["samples"], plain)
        assert [f"{kind} changed nothing in this run" in text for text in told] == [True] * runs


def test_a_latent_and_a_model_of_two_lengths_are_an_error(native, student):
    other = native("latents").model_for_frames(student, 16)
    with pytest.raises(ValueError, match="videos of 8 frames, but the MODEL was set to 16"):
        sample(other, empty(native))


def test_an_encoded_batch_has_each_videos_own_noise(native, student):
    """VAE Encode gives a LATENT that does not say its frames; the MODEL does."""
    known = native("latents").model_for_frames(student, FRAMES)
    encoded = torch.randn(2 * FRAMES, 4, SIDE, SIDE, generator=torch.manual_seed(1))
    both = custom(native, known, {"samples": encoded})["samples"]
    for video in (0, 1):
        rows = slice(video * FRAMES, (video + 1) * FRAMES)
        alone = custom(native, student, {"samples": encoded[rows]}, SEED + video)["samples"]
        assert near(both[rows], alone)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 4, 5, 8, 8), "5-D"), ((8, 16, 8, 8), "16 channels"), ((1, 128, 5, 8, 8), "LTX")],
)
def test_latents_of_other_models_are_refused_with_a_sentence(native, student, shape, kind):
    latent = {"samples": torch.ones(shape)}
    for run in (lambda: sample(student, latent), lambda: custom(native, student, latent)):
        with pytest.raises(ValueError, match="another kind of model.*Empty Latent Video"):
            run()


def test_empty_latents_of_an_image_model_are_one_clip(student):
    """Core's Empty Latent Image with a batch of 8."""
    from nodes import EmptyLatentImage

    (latent,) = EmptyLatentImage().generate(SIDE * 8, SIDE * 8, FRAMES)
    assert torch.isfinite(sample(student, latent)["samples"]).all()


def test_latents_are_saved_as_plain_tensors(native, tmp_path):
    import comfy.utils
    from safetensors.torch import load_file

    torch.save(empty(native)["samples"], tmp_path / "latents.pt")
    assert type(torch.load(tmp_path / "latents.pt", weights_only=True)) is torch.Tensor
    path = tmp_path / "ü.latent"
    comfy.utils.save_torch_file({"latent_tensor": empty(native)["samples"].contiguous()}, str(path))
    assert load_file(path)["latent_tensor"].shape == (2 * FRAMES, 4, SIDE, SIDE)
