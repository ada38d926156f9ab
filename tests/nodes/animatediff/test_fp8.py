"""Plain fp8 checkpoints become clip models too."""

from __future__ import annotations

import torch


def test_fp8_weights_give_nearly_the_fp32_clip(mcm, load, tiny, motion):
    fp8 = torch.float8_e4m3fn
    state = tiny.unet2d.state_dict()
    model = mcm.animatediff.apply_motion_module(load(state, fp8, torch.float32), motion)
    exact = mcm.animatediff.apply_motion_module(load(state), motion)
    assert model.model.get_dtype() == fp8
    assert model.model.diffusion_model.conv_in.weight.dtype == fp8
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(4, 4, 8, 8, generator=generator), torch.zeros(4, 7, 768)
    with torch.inference_mode():
        found, wanted = (
            each.model.diffusion_model(
                latents, torch.full((4,), 500.0), context=text, transformer_options={}
            )
            for each in (model, exact)
        )
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 0.2
