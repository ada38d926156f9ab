"""Fixed representations: their algebra, and naive references for the correlations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trainer.motion import REPRESENTATIONS
from trainer.motion.representations import (
    diff,
    global_correlation,
    high_frequency,
    local_correlation,
    low_frequency,
    raw,
)

SHAPES = {
    "raw": (2, 4, 5, 4, 6),
    "diff": (2, 4, 4, 4, 6),
    "low_frequency": (2, 4, 5, 4, 6),
    "high_frequency": (2, 4, 5, 4, 6),
    "local_correlation": (2, 9, 4, 4, 6),
    "global_correlation": (2, 4, 24, 24),
}


def clip(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 5, 4, 6, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_shape(name):
    assert REPRESENTATIONS[name](clip()).shape == SHAPES[name]


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_a_batch_of_two_equals_each_clip_alone(name):
    together = REPRESENTATIONS[name](clip())
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], REPRESENTATIONS[name](clip()[i : i + 1]))


@pytest.mark.parametrize("name", REPRESENTATIONS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, half):
    x = clip().to(half)
    expected = REPRESENTATIONS[name](x.float())
    assert torch.equal(REPRESENTATIONS[name](x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        inside = REPRESENTATIONS[name](x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_gradient_is_that_of_finite_differences(name):
    x = clip()[:1, :, :3, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(REPRESENTATIONS[name], (x,))


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_an_empty_clip_has_a_finite_gradient(name):
    x = torch.zeros(1, 4, 3, 4, 4, requires_grad=True)
    REPRESENTATIONS[name](x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_raw_is_the_identity():
    assert torch.equal(raw(clip()), clip())


def test_diff_is_later_minus_earlier_and_blind_to_a_constant_appearance():
    x = clip()
    assert torch.equal(diff(x)[:, :, 0], x[:, :, 1] - x[:, :, 0])
    appearance = clip(1)[:, :, :1]
    torch.testing.assert_close(diff(x + appearance), diff(x))
    assert not torch.allclose(raw(x + appearance), raw(x))


@pytest.mark.parametrize("size", [(5, 4, 6), (4, 3, 5), (1, 8, 8)])
def test_low_and_high_frequencies_add_up(size):
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(low_frequency(x) + high_frequency(x), x)


def test_a_constant_is_all_low_frequency():
    x = torch.ones(1, 2, 4, 4, 4, dtype=torch.float64) * 3
    torch.testing.assert_close(low_frequency(x), x)
    torch.testing.assert_close(high_frequency(x), torch.zeros_like(x))


def test_the_gain_is_gaussian_in_time_and_space():
    t = torch.arange(8, dtype=torch.float64)
    slow = torch.cos(2 * torch.pi * t / 8)  # a quarter of Nyquist
    flicker = torch.cos(torch.pi * t)  # Nyquist
    for axis in (2, 3, 4):
        shape = [1] * 5
        shape[axis] = 8
        for wave, gain in ((slow, -0.5), (flicker, -8.0)):
            x = wave.reshape(shape).expand(1, 1, 8, 8, 8)
            torch.testing.assert_close(low_frequency(x), x * torch.tensor(gain).double().exp())
    x = slow.reshape(1, 1, 8, 1, 1)
    wider = low_frequency(x, cutoff=0.5)
    torch.testing.assert_close(wider, x * torch.tensor(-0.125).double().exp())


def test_local_correlation_equals_a_loop_over_cells():
    x = clip()[:1]
    result = local_correlation(x, window=3)
    for f, y, column in ((0, 0, 0), (1, 2, 3), (3, 3, 5)):
        for k, (dy, dx) in enumerate((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            inside = 0 <= y + dy < 4 and 0 <= column + dx < 6
            expected = torch.zeros((), dtype=torch.float64)
            if inside:
                there = x[0, :, f + 1, y + dy, column + dx]
                expected = functional.cosine_similarity(x[0, :, f, y, column], there, dim=0)
            torch.testing.assert_close(result[0, k, f, y, column], expected, rtol=1e-4, atol=1e-4)


def test_the_centre_of_a_local_window_is_on_the_diagonal_of_the_global_correlation():
    x = clip()
    centre = local_correlation(x, window=5)[:, 12]
    diagonal = global_correlation(x).diagonal(dim1=2, dim2=3).reshape(centre.shape)
    torch.testing.assert_close(centre, diagonal)


def test_global_correlation_finds_where_a_shifted_frame_went():
    first = clip()[:, :, :1]
    x = torch.cat([first, first.roll(1, dims=4)], dim=2)
    correlation = global_correlation(x)
    assert correlation.abs().max() <= 1
    cells = torch.arange(24).reshape(4, 6)
    went = correlation[:, 0].argmax(dim=2)
    expected = cells.roll(-1, dims=1).flatten()
    assert torch.equal(went, expected.expand(2, 24))


def test_correlations_are_blind_to_contrast():
    x = clip() * 10
    torch.testing.assert_close(global_correlation(x * 3), global_correlation(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(local_correlation(x * 3), local_correlation(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_single_frames_without_a_clip_are_refused(name):
    with pytest.raises(ValueError, match=r"latents must be \(B, C, F, h, w\) with F >= "):
        REPRESENTATIONS[name](torch.zeros(2, 4, 8, 8))


@pytest.mark.parametrize("name", ["diff", "local_correlation", "global_correlation"])
def test_a_clip_of_one_frame_has_no_motion(name):
    with pytest.raises(ValueError, match="with F >= 2, got"):
        REPRESENTATIONS[name](torch.zeros(1, 4, 1, 8, 8))


@pytest.mark.parametrize("window", [0, 2, -1])
def test_an_even_window_is_refused(window):
    with pytest.raises(ValueError, match=f"`window`={window} must be odd"):
        local_correlation(clip(), window)


def test_a_cutoff_of_zero_is_refused():
    with pytest.raises(ValueError, match="`cutoff`=0.0 must be above 0"):
        low_frequency(clip(), 0.0)
