"""Offload works for every weight of a full-size model; tested without a GPU on torch's meta device.

Weights lie on the CPU, the "GPU" is meta: whatever a partial load forgets to move meets tensors of
the other device and fails.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

MODELSCOPE = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
    "layers_per_block": 2,
}
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture
def modelscope(native):
    """The full ModelScopeT2V, 1.4 billion weights that are reserved but never touched."""
    model = native("model").build_native_model(
        native("unet").NativeUNet3D, MODELSCOPE, dtype=torch.float16, scheduler_config=SCHEDULER
    )
    weights = {
        name: torch.empty(value.shape, dtype=torch.float16)
        for name, value in model.diffusion_model.state_dict().items()
    }
    model.diffusion_model.load_state_dict(weights, assign=True)
    return model


def test_the_full_modelscope_has_no_layer_that_comfyui_does_not_know(modelscope):
    weights = modelscope.diffusion_model.state_dict()
    assert sum(value.numel() for value in weights.values()) == pytest.approx(1411e6, rel=0.01)
    for module in modelscope.diffusion_model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            assert hasattr(module, "comfy_cast_weights")


@torch.inference_mode()
def test_the_full_modelscope_runs_partially_loaded(modelscope):
    from comfy.model_patcher import ModelPatcher

    meta, cpu = torch.device("meta"), torch.device("cpu")
    patcher = ModelPatcher(modelscope, load_device=meta, offload_device=cpu)
    patcher.patch_model(device_to=meta, lowvram_model_memory=300e6)
    assert modelscope.model_lowvram
    frames = 16
    out = modelscope.diffusion_model(
        torch.empty(frames, 4, 32, 32, device=meta),
        torch.empty(frames, device=meta),
        context=torch.empty(frames, 77, 1024, device=meta),
    )
    assert out.shape == (frames, 4, 32, 32)
    assert out.device == meta


@torch.inference_mode()
def test_a_partly_loaded_model_computes_the_same(native, tiny_model):
    model = native("model").load_native_model(tiny_model, "fp32")
    x = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    text, steps = torch.ones(8, 77, 64), torch.full((8,), 300.0)
    full = model.model.diffusion_model(x, steps, context=text)
    model.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=1)
    assert model.model.model_lowvram
    assert torch.equal(model.model.diffusion_model(x, steps, context=text), full)
    model.detach()
    assert torch.equal(model.model.diffusion_model(x, steps, context=text), full)
