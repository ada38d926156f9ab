"""The codec computes what diffusers' autoencoders do, frame by frame, however many at a time."""

from __future__ import annotations

import pytest
import torch

from trainer.families import codec, load_model
from trainer.families.codec import FrameCodec, frames_at_once

CPU = torch.device("cpu")


@pytest.fixture(params=["kl", "tiny"])
def made(request, sd15_parts, tiny_model):
    """A codec of each kind, with networks of its own."""
    from copy import deepcopy

    if request.param == "kl":
        return FrameCodec(deepcopy(sd15_parts.vae))
    return load_model(str(tiny_model)).codec


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def few_at_once(monkeypatch, count: int) -> None:
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", count * 32 * 32)


def frames_of(clips: torch.Tensor) -> torch.Tensor:
    return clips.transpose(1, 2).flatten(0, 1)


def test_a_clip_has_the_shape_of_its_latents(made):
    assert made.latent_shape(5, 32, 64) == (4, 5, 4, 8)
    clips = noise(2, 3, 5, 32, 64).clamp(-1, 1)
    latents = made.encode(clips)
    assert latents.shape == (2, *made.latent_shape(5, 32, 64))
    assert made.decode(latents).shape == clips.shape


@pytest.mark.parametrize(("size", "name"), [((60, 64), "height"), ((64, 0), "width")])
def test_a_size_that_cells_do_not_fill_is_refused(made, size, name):
    with pytest.raises(ValueError, match=f"`{name}`=.* must be a positive multiple of 8 pixels"):
        made.latent_shape(8, *size)


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_encoding_is_diffusers_mode_times_its_factor(made, at_once, monkeypatch):
    few_at_once(monkeypatch, at_once)
    clips = noise(2, 3, 4, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        found, encoded = made.encode(clips), made.vae.encode(frames_of(clips))
    wanted = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    wanted = wanted * made.vae.config.scaling_factor
    torch.testing.assert_close(frames_of(found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_decoding_is_diffusers_within_the_range_of_pixels(made, at_once, monkeypatch):
    few_at_once(monkeypatch, at_once)
    latents = 3 * noise(2, 4, 4, 4, 4)
    with torch.no_grad():
        found = made.decode(latents)
        wanted = made.vae.decode(frames_of(latents) / made.vae.config.scaling_factor).sample
    torch.testing.assert_close(frames_of(found), wanted.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_some_frames_are_those_of_the_whole_clips_unclamped(made):
    latents, picked = 3 * noise(2, 4, 4, 4, 4), torch.tensor([[3, 0], [1, 1]])
    with torch.no_grad():
        pixels, whole = made.decode_frames(latents, picked), made.decode(latents)
    wanted = [whole[row, :, frame] for row in range(2) for frame in picked[row].tolist()]
    torch.testing.assert_close(pixels.clamp(-1, 1), torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert pixels.dtype == torch.float32


def test_the_size_of_a_frame_says_how_many_go_at_once():
    assert frames_at_once(256, 256) == 1 == frames_at_once(1024, 1024)
    assert frames_at_once(64, 64) == 16


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("at_once", [1, 64])
def test_a_codec_for_training_has_the_same_gradient(made, checkpointing, at_once, monkeypatch):
    few_at_once(monkeypatch, at_once)
    made.vae.requires_grad_(False)
    picked, found = torch.tensor([[3, 0], [1, 2]]), []
    for decoder in (made, made.for_training(CPU, torch.float32, checkpointing, apart=False)):
        latents = noise(2, 4, 4, 4, 4).requires_grad_()
        decoder.decode_frames(latents, picked).square().sum().backward()
        found.append(latents.grad)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "checkpointing", "apart"),
    [(torch.bfloat16, False, False), (torch.float32, True, False), (torch.float32, False, True)],
)
def test_training_leaves_the_autoencoder_as_it_is(made, dtype, checkpointing, apart):
    clips = noise(1, 3, 2, 32, 32).clamp(-1, 1)
    latents = made.encode(clips)
    before = made.decode(latents)
    other = made.for_training(CPU, dtype, checkpointing, apart)
    assert other.vae is not made.vae and other.vae.encoder is None
    assert {p.dtype for p in other.vae.decoder.parameters()} == {dtype}
    assert not any(p.requires_grad for p in other.vae.parameters())
    ours = {p.data_ptr() for p in made.vae.parameters()}
    assert not any(p.data_ptr() in ours for p in other.vae.parameters())
    pixels = other.decode_frames(latents, torch.tensor([[0, 1]]))
    assert pixels.dtype == torch.float32
    away = (pixels.clamp(-1, 1) - frames_of(before)).norm() / before.norm()
    assert away < (0.05 if dtype == torch.bfloat16 else 1e-5)
    assert torch.equal(made.encode(clips), latents) and torch.equal(made.decode(latents), before)


def test_without_an_option_training_decodes_with_the_models_own_weights(made):
    assert made.for_training(CPU, torch.float32, False, False).vae is made.vae
