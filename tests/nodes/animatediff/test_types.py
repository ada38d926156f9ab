"""Checkpoints in every weight type, and as core's dynamic VRAM holds them: in their file's type."""

from __future__ import annotations

import pytest
import torch
from dynamic_vram import dynamic_vram

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def as_in_the_file(model, state, dtype):
    """`model` with weights that stayed in `dtype`, as ``load_model_weights(assign=True)`` does."""
    unet = model.model.diffusion_model
    kept = {key: value.to(dtype) for key, value in unet.state_dict().items()}
    unet.load_state_dict(kept, assign=True)
    return model


@torch.inference_mode()
def predict(model):
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(4, 4, 8, 8, generator=generator), torch.zeros(4, 7, 768)
    network = model.model.diffusion_model
    return network(latents, torch.full((4,), 500.0), context=text, transformer_options={})


@pytest.mark.parametrize("file", TYPES, ids=str)
@pytest.mark.parametrize("chosen", TYPES, ids=str)
def test_weights_are_taken_over_in_the_models_type(mcm, load, tiny, motion, file, chosen):
    """The type ComfyUI chose for the model counts, whatever the checkpoint's file has."""
    state = tiny.unet2d.state_dict()
    base = as_in_the_file(load(state, chosen, torch.float32), state, file)
    model = mcm.animatediff.apply_motion_module(base, motion)
    unet = model.model.diffusion_model
    small = torch.float16 if chosen.itemsize == 1 else chosen
    for name, value in unet.named_parameters():
        assert value.dtype == (chosen if value.ndim > 1 else small), name
    found = predict(model)
    assert found.dtype == torch.float32
    exact = predict(mcm.animatediff.apply_motion_module(load(state), motion))
    coarse = max(torch.finfo(each).eps for each in (file, chosen))
    assert float((found - exact).norm() / exact.norm()) <= 3 * coarse


def test_the_model_can_be_made_once_more_where_core_can_load_its_base(mcm, load, tiny, motion):
    state = tiny.unet2d.state_dict()
    base = load(state)
    assert mcm.animatediff.apply_motion_module(base, motion).cached_patcher_init is None
    asked = []

    def again(*arguments, disable_dynamic=False):
        asked.append(disable_dynamic)
        return load(state), *arguments

    base.cached_patcher_init = again, ("clip", "vae"), 0
    with dynamic_vram():
        model = mcm.animatediff.apply_motion_module(base, motion)
        make, arguments = model.cached_patcher_init
        for disable in (False, True):
            second = make(*arguments, disable_dynamic=disable)
            assert second.model is not model.model
            assert torch.equal(predict(second), predict(model))
    assert asked == [False, True]
