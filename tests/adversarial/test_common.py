"""The common loss: what all frames share, place by place, however faint."""

from __future__ import annotations

import pytest
import torch

from trainer.adversarial.frame_losses import BANDS, REACH, CommonLoss

HALF = torch.full((8,), 0.6)


def maps(seed: int, mark: float = 0.0, count: int = 8):
    """Two levels of noisy frames; ``mark`` is added at the same places of all frames."""
    g = torch.Generator().manual_seed(seed)
    levels = [torch.randn(count, c, side, side, generator=g) for c, side in ((4, 16), (6, 8))]
    for level in levels:
        level[..., -3, 2::3] += mark
    return levels


def settled(loss: CommonLoss, mark: float, rounds: int = 60) -> float:
    return [float(loss(maps(2 * k, mark), maps(2 * k + 1), HALF)) for k in range(rounds)][-1]


def huber(ours, real) -> float:
    """Mean distance of two averages in units of the deviation of the real ones."""
    total = 0.0
    for a, b in zip(ours, real, strict=True):
        a, b = a.double(), b.double()
        variance = b.var(dim=0, correction=0)
        gap = (a.mean(0) - b.mean(0)) / (variance + 0.05 * variance.mean()).sqrt()
        total += float(((1 + gap**2).sqrt() - 1).mean())
    return total


def test_the_loss_is_the_pseudo_huber_distance_of_the_averages():
    ours, real = maps(0, mark=1.0), maps(1)
    assert float(CommonLoss()(ours, real, HALF)) == pytest.approx(huber(ours, real), rel=1e-4)


def test_every_band_of_noise_levels_has_an_average_of_its_own():
    """Too bright from little noise and too dark from much is not right on the whole."""
    ours, real = maps(0), maps(1)
    few, many = ([m[rows] for m in ours] for rows in (slice(0, 2), slice(2, 8)))
    for bright, dark in zip(few, many, strict=True):
        bright += 3
        dark -= 1
    level = torch.tensor([0.999] * 2 + [0.1] * 6)
    expected = 0.25 * huber(few, real) + 0.75 * huber(many, real)
    assert float(CommonLoss()(ours, real, level)) == pytest.approx(expected, rel=1e-4)
    assert expected > 3 * float(CommonLoss()(ours, real, HALF))


def test_an_average_reaches_back_over_the_frames_of_its_band():
    loss, real = CommonLoss(), maps(1)
    for seed in range(4):
        loss(maps(seed), real, HALF)
    loss(maps(9, mark=5.0), real, torch.zeros(8))
    average = loss.kept["ours.0"]
    assert average.shape == (BANDS, 4, 16, 16)
    expected = torch.cat([maps(seed)[0] for seed in range(4)]).mean(0)
    assert torch.allclose(average[2], expected, atol=1e-5)
    assert torch.allclose(average[0], maps(9, mark=5.0)[0].mean(0), atol=1e-5)
    for seed in range(40):
        loss(maps(seed), real, HALF)
    assert loss.kept["seen.ours.0"].tolist() == [8, 0, REACH, 0]


def test_a_faint_mark_stands_out_of_noise_when_it_is_always_there():
    clean, marked = (settled(CommonLoss(), mark) for mark in (0.0, 0.5))
    at_once = settled(CommonLoss(), 0.5, rounds=1) / settled(CommonLoss(), 0.0, rounds=1)
    assert at_once < 1.2, "in one batch the noise hides it"
    assert marked > 1.5 * clean, "in the average it does not"


def test_the_pull_is_away_from_the_mark_and_nowhere_else():
    loss = CommonLoss()
    settled(loss, 0.5)
    ours = [m.requires_grad_() for m in maps(300, 0.5)]
    loss(ours, maps(301), HALF).backward()
    for level in ours:
        pull = level.grad.mean(dim=(0, 1))
        at = torch.zeros_like(pull, dtype=torch.bool)
        at[-3, 2::3] = True
        assert bool((pull[at] > 0).all()), "fainter is nearer"
        assert float(pull[at].mean()) > 4 * float(pull[~at].abs().mean())


def test_averages_go_on_from_their_state():
    loss, again = CommonLoss(), CommonLoss()
    settled(loss, 0.5, rounds=3)
    again.load_state_dict({name: value.clone() for name, value in loss.state_dict().items()})
    assert torch.equal(again(maps(8), maps(9), HALF), loss(maps(8), maps(9), HALF))
