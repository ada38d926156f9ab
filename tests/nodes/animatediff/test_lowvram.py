"""AnimateDiff at full size with nearly no memory: no tensor is left on the wrong device.

Meta tensors stand for a second device: layers that ComfyUI does not move fail there, and the 1313
million weights take no memory.
"""

from __future__ import annotations

import pytest
import torch

FULL = {"model_channels": 320, "channel_mult": [1, 2, 4, 4]}
WIDTHS = (320, 640, 1280, 1280)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def full_model(mcm):
    """SD 1.5 and mm_sd_v15_v2 in their real sizes, through the code under test, on meta."""
    from diffusers import MotionAdapter, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        adapter = MotionAdapter(block_out_channels=WIDTHS)
    native = mcm.animatediff.build_native_model(
        mcm.unet.NativeMotionUNet,
        full_options(mcm, adapter),
        dtype=torch.float16,
        scheduler_config=mcm.animatediff.SCHEDULER_CONFIG,
    )
    names = {path for path in native.diffusion_model.state_dict() if ".motion_modules." not in path}
    assert names == set(unet.state_dict())
    info = mcm.animatediff.motion_info(meta_module(mcm, adapter), mcm.animatediff.SCHEDULER_CONFIG)
    return mcm.animatediff.wrap_model(native, info)


def meta_module(mcm, adapter):
    return mcm.motion_module.MotionModule(
        name="full",
        weights=adapter.state_dict(),
        channels=WIDTHS,
        layers=(2, 2, 2, 2),
        depth=1,
        mid_block=True,
        max_frames=32,
    )


def full_options(mcm, adapter):
    config = {
        **FULL,
        "in_channels": 4,
        "out_channels": 4,
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "context_dim": 768,
        "num_heads": 8,
        "use_linear_in_transformer": False,
    }
    return mcm.animatediff.unet_options(config, meta_module(mcm, adapter))


def test_full_size_runs_with_one_byte_of_device_memory(full_model):
    unet = full_model.model.diffusion_model
    assert round(sum(value.numel() for value in unet.parameters()) / 1e6) == 1313
    for module in unet.modules():  # weights elsewhere than the inputs, as after a partial load
        if hasattr(module, "pe"):
            module.pe = torch.zeros(module.pe.shape)
    full_model.patch_model(device_to=torch.device("meta"), lowvram_model_memory=1)
    assert full_model.model.model_lowvram
    cast = [module for module in unet.modules() if list(module.parameters(recurse=False))]
    assert all(module.comfy_cast_weights for module in cast)
    with torch.inference_mode():
        out = unet(
            torch.empty(32, 4, 64, 64, device="meta"),
            torch.empty(32, device="meta"),
            context=torch.empty(32, 77, 768, device="meta"),
            transformer_options={"cond_or_uncond": [1, 0]},
        )
    assert (out.shape, out.device.type) == ((32, 4, 64, 64), "meta")


def test_low_vram_gives_the_same_clip_with_a_lora(clip_model):
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(4, 7, 768, generator=torch.Generator().manual_seed(1))
    key = "diffusion_model.mid_block.motion_modules.0.proj_in.weight"
    clip_model.add_patches({key: ("diff", (torch.full((64, 64), 0.1),))}, 0.5)
    found = []
    for memory in (0, 1):
        clip_model.patch_model(torch.device("cpu"), lowvram_model_memory=memory)
        assert clip_model.model.model_lowvram == bool(memory)
        with torch.inference_mode():
            unet = clip_model.model.diffusion_model
            found.append(unet(latents, torch.tensor([9.0]), context=text, transformer_options={}))
        clip_model.unpatch_model(torch.device("cpu"))
    assert relative(*found) <= 1e-6
