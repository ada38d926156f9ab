"""On the CPU the tiny autoencoder runs channels-last; its numbers are diffusers' up to rounding."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from trainer.families import MINI


@pytest.fixture(scope="module")
def vae(comfy):
    return import_module(f"{comfy.__name__}.nodes.native.vae").load_native_vae(MINI / "vae")


@torch.inference_mode()
def test_the_pixels_change_by_rounding_only(vae):
    from diffusers import AutoencoderTiny

    theirs = AutoencoderTiny.from_pretrained(MINI / "vae").float().eval()
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert (vae.decode(latents) - expected).abs().max() <= 1e-5
    pixels = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    expected = theirs.encode(pixels.movedim(-1, 1) * 2 - 1).latents
    assert (vae.encode(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_convolutions_are_channels_last_and_no_weight_is_another(vae):
    from trainer.models.weights import read_weights

    stage = vae.first_stage_model
    convolutions = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) > 40
    for layer in convolutions:
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(layer.inplace for layer in stage.modules() if isinstance(layer, nn.ReLU))
    stored = sorted(float(value.float().sum()) for value in read_weights(MINI / "vae").values())
    layers = [*stage.taesd_encoder.parameters(), *stage.taesd_decoder.parameters()]
    assert sorted(float(p.contiguous().sum()) for p in layers) == pytest.approx(stored, abs=1e-4)


@torch.inference_mode()
def test_latents_are_not_overwritten(vae):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = latents.clone()
    vae.decode(latents)
    assert torch.equal(latents, kept)
