"""Clips and single frames of a causal autoencoder, by the exact decoder and by the tiny one."""

from __future__ import annotations

import pytest
import torch
import wan_files
from safetensors.torch import save_file

from trainer.families.causal import CausalCodec, TinyCodec
from trainer.models.tiny_vae import TinyVae, read_tiny_vae
from trainer.models.weights import ModelError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae():
    return wan_files.build_vae()


@pytest.fixture(scope="module")
def tiny():
    return wan_files.build_tiny_vae()


@pytest.fixture
def latents():
    return torch.randn(2, 16, 5, 2, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["exact", "tiny"])
def codec(request, vae, tiny):
    return CausalCodec(vae, tiny if request.param == "tiny" else None)


def all_frames(clips):
    return torch.arange(clips.shape[2] * 4 - 3).repeat(len(clips), 1)


@torch.no_grad()
def test_clips_go_in_and_out_as_diffusers_scales_them(vae):
    codec = CausalCodec(vae)
    clips = torch.rand(2, 3, 9, 16, 32) * 2 - 1
    latents = codec.encode(clips)
    assert latents.shape == (2, *codec.latent_shape(9, 16, 32))
    # WanPipeline, `vae_encode` of its trainers and `decode_latents`.
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    wanted = (vae.encode(clips).latent_dist.mode() - mean) * std
    assert torch.allclose(latents, wanted, atol=1e-5)
    decoded = vae.decode(latents / std + mean).sample.clamp(-1, 1)
    assert torch.allclose(codec.decode(latents), decoded, atol=1e-5)
    assert torch.allclose(codec.encode(clips[:, :, :1]), latents[:, :, :1], atol=1e-5), (
        "the first latent is one frame"
    )


@torch.no_grad()
def test_single_frames_are_those_of_the_clip_while_the_window_reaches_its_start(codec, latents):
    decoder, window = codec.quick, codec.quick.window
    short = latents[:, :, :window]
    frames = all_frames(short)
    clips = decoder._decode(short).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(decoder.decode_frames(short, frames), clips, atol=1e-5)


@torch.no_grad()
def test_a_later_frame_is_decoded_from_the_latents_before_it(codec, latents):
    """Frame 14 is the second of latent 4's four; what lies before its window counts for nothing."""
    decoder = codec.quick
    first = 5 - decoder.window
    frames = torch.tensor([[14], [14]])
    found = decoder.decode_frames(latents, frames)
    clip = decoder._decode(latents[:, :, first:])
    assert torch.allclose(found, clip[:, :, 14 - 4 * first], atol=1e-5)
    changed = latents.clone()
    changed[:, :, first - 1] += 1
    assert torch.equal(decoder.decode_frames(changed, frames), found)
    changed[:, :, first] += 1
    assert not torch.equal(decoder.decode_frames(changed, frames), found)


@torch.no_grad()
def test_the_frames_of_each_clip_are_its_own(codec, latents):
    decoder = codec.quick
    together = decoder.decode_frames(latents, torch.tensor([[0, 7], [16, 3]]))
    alone = [decoder.decode_frames(latents[:1], torch.tensor([[0, 7]])),
             decoder.decode_frames(latents[1:], torch.tensor([[16, 3]]))]  # fmt: skip
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_however_much_is_kept(codec, latents, checkpointing):
    frames = torch.tensor([[2, 16], [0, 9]])
    found = []
    for kept in (False, checkpointing):
        asked = latents.clone().requires_grad_(True)
        decoder = codec.for_training(CPU, torch.float32, kept, apart=True)
        pixels = decoder.decode_frames(asked, frames)
        found.append(torch.autograd.grad(pixels.square().sum(), asked)[0])
    assert found[0].abs().sum(dim=(0, 1, 3, 4)).gt(0).all()
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5)


def test_training_and_previews_take_the_tiny_decoder_and_clips_the_exact_one(vae, tiny, latents):
    codec = CausalCodec(vae, tiny)
    trained = codec.for_training(CPU, torch.bfloat16, False, apart=False)
    assert isinstance(trained, TinyCodec) and isinstance(codec.quick, TinyCodec)
    assert trained.vae is not tiny and trained.vae.dtype == torch.bfloat16
    assert tiny.dtype == torch.float32, "that of the previews is left alone"
    with torch.no_grad():
        quick, exact = codec.quick.decode(latents), codec.decode(latents)
        assert torch.equal(exact, CausalCodec(vae).decode(latents))
        assert torch.equal(codec.quick.encode(quick), codec.encode(quick))
    assert quick.shape == exact.shape == (2, 3, 17, 16, 32)
    assert CausalCodec(vae).quick.vae is vae
    half = CausalCodec(vae).for_training(CPU, torch.float32, True, apart=False)
    assert half.vae.encoder is None and vae.encoder is not None


@pytest.mark.parametrize(
    ("size", "words"),
    [((8, 32, 32), "4k . 1"), ((9, 24, 32), "`height`=24"), ((9, 32, 0), "`width`=0")],
)
def test_sizes_that_cannot_be_are_refused(vae, size, words):
    with pytest.raises(ValueError, match=words):
        CausalCodec(vae).latent_shape(*size)


@torch.no_grad()
def test_a_tiny_vae_is_read_from_its_file(tiny, latents, tmp_path):
    file = tmp_path / "taew2_1 ü.safetensors"
    save_file(wan_files.tiny_vae_state(tiny), file)
    assert torch.equal(read_tiny_vae(file)(latents), tiny(latents))


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_frame_alone_is_that_of_the_whole_clip_with_its_gradient(tiny, length):
    noise = torch.Generator().manual_seed(length)
    latents = torch.randn(3, 16, length, 4, 6, generator=noise).requires_grad_(True)
    weights = torch.randn(3, 3, 32, 48, generator=noise)
    for first in range(4 * length - 3):
        frames = torch.tensor([first, 0, 4 * length - 4])
        clips = tiny(latents)
        wanted = torch.stack([clips[row, :, frame] for row, frame in enumerate(frames)])
        found = tiny.frame(latents, frames)
        assert torch.allclose(found, wanted, atol=1e-5)
        slopes = [torch.autograd.grad((x * weights).sum(), latents)[0] for x in (wanted, found)]
        assert torch.allclose(*slopes, atol=1e-4)


def test_the_published_tiny_vae_has_no_key_too_many_or_too_few():
    """By its names and shapes (taehv.py); 22 is the last, which ComfyUI knows it by."""
    with torch.device("meta"):
        state = TinyVae().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,),
              "decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}  # fmt: skip
    stages = ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2))
    for first, width, after, growth in stages:
        for block in range(first, first + 3):
            for place, inputs in ((0, 2 * width), (2, width), (4, width)):
                wanted[f"decoder.{block}.conv.{place}.weight"] = (width, inputs, 3, 3)
                wanted[f"decoder.{block}.conv.{place}.bias"] = (width,)
        wanted[f"decoder.{first + 4}.conv.weight"] = (growth * width, width, 1, 1)
        wanted[f"decoder.{first + 5}.weight"] = (after, width, 3, 3)
    assert shapes == wanted


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("taehv.safetensors", {}, "another model"),
        ("taew2_2.safetensors", {"decoder.1.weight": (8, 48, 3, 3)}, "another model .48 channels"),
        ("vae.safetensors", {"decoder.22.bias": None}, "no tiny VAE"),
        ("torn.safetensors", {"decoder.14.weight": None}, "lacks decoder.14.weight"),
        ("torn.safetensors", {"decoder.4.conv.2.bias": None}, "1 missing"),
    ],
)
def test_other_files_are_refused(tiny, name, change, words, tmp_path):
    state = wan_files.tiny_vae_state(tiny)
    for key, shape in change.items():
        if shape is None:
            del state[key]
        else:
            state[key] = torch.zeros(shape)
    save_file(state, tmp_path / name)
    with pytest.raises(ModelError, match=words):
        read_tiny_vae(tmp_path / name)
    with pytest.raises(ModelError, match="taew2_1.safetensors"):
        read_tiny_vae(tmp_path / "no.safetensors")


@pytest.fixture
def partial(vae, monkeypatch):
    """The exact decoder with parts of 2 cells, decoded with 1 beside them."""
    monkeypatch.setattr(CausalCodec, "reach", 4)
    monkeypatch.setattr(CausalCodec, "margin", 1)
    return CausalCodec(vae)


@pytest.mark.parametrize(
    ("place", "outer", "inner"),
    [((0.0, 0.0), (0, 0), (0, 0)), ((0.5, 0.4), (2, 1), (3, 2)), ((0.99, 0.99), (3, 2), (5, 4))],
)
@torch.no_grad()
def test_a_part_is_decoded_with_its_margin_up_to_the_edges(partial, place, outer, inner):
    latents = torch.randn(2, 16, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    frames = torch.tensor([[0, 7], [2, 8]])
    assert partial.part(56, 48) == (16, 16)
    found = partial.decode_frames(latents, frames, torch.tensor(place))
    (y, x), (v, u) = outer, inner
    whole = partial.decode_frames(latents[..., y : y + 4, x : x + 4], frames)
    top, left = 8 * (v - y), 8 * (u - x)
    assert torch.equal(found, whole[..., top : top + 16, left : left + 16])


@torch.no_grad()
def test_every_cell_is_in_some_part_and_what_is_small_is_whole(partial, tiny, vae):
    seen = torch.zeros(7, dtype=torch.bool)
    rows = torch.arange(7.0).view(1, 1, 1, 7, 1).expand(1, 1, 1, 7, 3)
    for place in torch.linspace(0, 0.999, 50):
        part, inside = partial._part(rows, 3, place)
        seen[part[0, 0, 0, :, 0].repeat_interleave(8)[inside].long()] = True
    assert seen.all()
    assert partial.part(32, 24) == (32, 24) and partial.part(32, 40) == (32, 16)
    latents = torch.randn(1, 16, 2, 4, 3)
    frames, place = torch.tensor([[3]]), torch.tensor([0.7, 0.7])
    whole = partial.decode_frames(latents, frames)
    assert torch.equal(partial.decode_frames(latents, frames, place), whole)
    assert CausalCodec(vae, tiny).quick.part(480, 832) == (480, 832)
