"""The pieces that train the mini model: resumable stages, the autoencoder's start, clips, words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from minimaker.autoencoder import initialise, moment_penalty, to_pixels
from minimaker.directions import (
    DIRECTIONS,
    HIGH_NOISE,
    PURE_NOISE,
    SHAPES_AGAIN,
    MeanClips,
    kept_signal,
    noise_levels,
    separate_words,
    weakened,
)
from minimaker.stage import cosine, run_stage
from minimaker.teacher import SEQUENCE, ClipStore, noise_weight
from minimaker.text import build_text_encoder, build_tokenizer, kept_tokenizer, tokenize
from minimaker.world import FRAMES
from trainer.mini.words import COLOURS, MOTIONS, SHAPES


def stage(work, steps, stop_after=None):
    """A linear regression whose batch depends on the step alone; optionally interrupted."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)

    def loss_of(step):
        if step == stop_after:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    ema = run_stage("s", module, optimizer, loss_of, steps=steps, work=work, lr=0.1, ema_decay=0.9)
    return ema.shadow


def test_an_interrupted_stage_goes_on_as_if_nothing_happened(tmp_path, monkeypatch):
    straight = stage(tmp_path / "a", 60)
    monkeypatch.setattr("minimaker.stage.SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "b", 60, stop_after=25)
    resumed = stage(tmp_path / "b", 60)
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


def test_learning_rate_warms_up_and_falls():
    values = [cosine(step, 1000) for step in range(1000)]
    assert values[0] < 0.05 and max(values) == pytest.approx(1, abs=0.01) and values[-1] < 0.03
    assert values.index(max(values)) == pytest.approx(49, abs=2)


def test_the_autoencoder_starts_as_a_mean_colour_codec():
    torch.manual_seed(0)
    vae = AutoencoderTiny(scaling_factor=1.0)
    initialise(vae)
    blocks = torch.rand(2, 3, 4, 4) * 0.6 + 0.2
    pixels = torch.nn.functional.interpolate(blocks, scale_factor=8.0) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latents
        decoded = vae.decode(latents).sample
    torch.testing.assert_close(latents[:, :3], (blocks - 0.5) * 4, atol=1e-4, rtol=0)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (decoded[inner] - pixels[inner]).abs().mean() < 0.1


def test_moment_penalty_is_zero_for_unit_latents_only():
    noise = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert moment_penalty(noise) < 1e-4
    assert moment_penalty(2 * noise) > 0.3 and moment_penalty(noise + 1) > 0.3


def test_reversed_windows_get_the_opposite_caption():
    frames = torch.arange(SEQUENCE, dtype=torch.float16).view(1, SEQUENCE, 1, 1, 1)
    labels = torch.tensor([[SHAPES.index("star"), COLOURS.index("red"), MOTIONS.index("growing")]])
    store = ClipStore(frames, labels.to(torch.uint8))
    clips, captions = store.batch(200, np.random.default_rng(0))
    assert clips.shape == (200, 1, FRAMES, 1, 1)
    seen = set()
    for clip, caption in zip(clips.flatten(1), captions, strict=True):
        forward = bool(clip[1] > clip[0])
        assert clip.sort(descending=not forward).values.equal(clip)
        if caption.endswith("ing"):
            assert caption == f"a red star {'growing' if forward else 'shrinking'}"
        seen.add(caption)
    assert {"", "a red star", "a red star growing", "a red star shrinking"} == seen


def test_noise_weight_looks_at_high_noise():
    alphas = torch.tensor([0.999, 0.5, 0.05])
    clean, middle, noisy = noise_weight(alphas).tolist()
    assert clean < 0.01 and middle == pytest.approx(2) and noisy == pytest.approx(20)


def test_every_word_of_the_world_is_one_token_and_any_text_tokenizes():
    tokenizer = build_tokenizer()
    for name in (*SHAPES, *COLOURS, *MOTIONS):
        assert len(tokenizer.tokenize(name)) == len(name.split())
    ids = tokenizer("Ünïcode spirals, 42!").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]


def test_a_training_keeps_its_tokenizer(tmp_path):
    first, again = (kept_tokenizer(tmp_path / "tokenizer") for _ in range(2))
    assert first.get_vocab() == again.get_vocab() and first.model_max_length == 77
    words = ["a purple star moving left", "of ink and art, overlooked"]
    assert torch.equal(tokenize(first, words), tokenize(again, words))


def test_to_pixels_maps_bytes_to_unit_range():
    pixels = to_pixels(np.array([[[[0, 127, 255]]]], np.uint8))
    assert pixels.shape == (1, 3, 1, 1)
    assert pixels.flatten().tolist() == pytest.approx([-1, -0.0039, 1], abs=1e-3)


def test_a_weakened_sample_leads_to_the_whole_clip_and_pure_noise_to_the_mean():
    generator = torch.Generator().manual_seed(0)
    x0, mean, eps = torch.randn(3, 3, 4, 2, 8, 8, generator=generator)
    alpha, keep = torch.full((3, 1, 1, 1, 1), 0.05), torch.tensor([0.0, 0.5, 1.0])
    noisy, target = weakened(x0, mean, eps, alpha, keep.view(-1, 1, 1, 1, 1))
    reached = (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt()
    torch.testing.assert_close(reached[0], mean[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(reached[1:], x0[1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(target[2], eps[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(noisy[0], (1 - alpha[0]).sqrt() * eps[0])


@pytest.mark.parametrize(("course", "high", "pure"), [(DIRECTIONS, 60, 40), (SHAPES_AGAIN, 40, 25)])
def test_noise_levels_have_the_shares_of_their_course(course, high, pure):
    t = noise_levels(100, course, torch.Generator().manual_seed(0))
    assert ((t >= HIGH_NOISE).sum(), (t >= PURE_NOISE).sum()) == (high, pure)
    assert t.min() < 50 and 980 < t.max() <= 999


def test_the_signal_is_taken_at_high_noise_only():
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, HIGH_NOISE - 1, HIGH_NOISE, PURE_NOISE - 1, PURE_NOISE, 999])
    keep = torch.stack([kept_signal(t, generator) for _ in range(2000)])
    assert (keep[:, :2] == 1).all() and (keep[:, 2:4] > 0).all()
    assert (keep[:, 2:4] == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (keep[:, 4:] == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (keep[:, 4:] == 1).float().mean() == pytest.approx(0.25, abs=0.03)


def test_mean_clips_follow_the_caption_and_time():
    time = torch.arange(SEQUENCE, dtype=torch.float16).view(1, SEQUENCE, 1, 1, 1)
    latents = torch.cat((time, 2 * time))
    rows = [
        (SHAPES.index("star"), COLOURS.index(c), MOTIONS.index("growing")) for c in ("red", "blue")
    ]
    means = MeanClips(ClipStore(latents, torch.tensor(rows, dtype=torch.uint8)))
    windows = torch.arange(FRAMES) + (SEQUENCE - FRAMES) / 2
    found = means.of(["a red star growing", "a red star shrinking", "a blue star growing", ""])
    found = found.flatten(1)
    torch.testing.assert_close(found[0], windows)
    torch.testing.assert_close(found[1], windows.flip(0))
    torch.testing.assert_close(found[2], 2 * windows)
    assert found[3].unique().tolist() == [1.5 * (SEQUENCE - 1) / 2]


def test_separated_words_give_separate_states():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(tokenizer).eval()
    ids = tokenize(tokenizer, ["a red circle moving left", "a red circle moving right"])
    weight = encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[ids[1, 5]] = weight[ids[0, 5]]
        left, right = encoder(ids).last_hidden_state
        assert torch.equal(left, right)
        separate_words(encoder, tokenizer)
        left, right = encoder(ids).last_hidden_state
    assert (left - right).norm(dim=-1)[5] > 1
