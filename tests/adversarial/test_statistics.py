"""The statistics loss: what a crowd of frames looks like, where, and how varied it is."""

from __future__ import annotations

import pytest
import torch

from trainer.adversarial.frame_losses import (
    CAPACITY,
    ENOUGH,
    StatisticsLoss,
    cell_statistics,
    shallower_half,
)


def maps(seed: int, count: int = 32, shift: float = 0.0, spread: float = 1.0):
    """Two levels; each frame has a brightness of its own, drawn with this mean and deviation."""
    g = torch.Generator().manual_seed(seed)
    own = shift + spread * torch.randn(count, 1, 1, 1, generator=g)
    sizes = ((6, 16), (4, 8))
    return [own + torch.randn(count, c, side, side, generator=g) for c, side in sizes]


def silent(levels):
    """Captions of frames that have none: all alike."""
    return torch.ones(len(levels[0]), 8) * torch.arange(8)


def distance(loss, ours, real):
    return loss(ours, real, silent(ours), silent(real))


def settled(ours, real) -> float:
    """The loss of new frames once both crowds are full."""
    loss = StatisticsLoss()
    for seed in (0, 100):
        distance(loss, ours(seed), real(seed + 1))
    return float(distance(loss, ours(200), real(201)))


def test_statistics_are_mean_and_deviation_of_each_cell():
    (level, _) = maps(0, count=2)
    found = cell_statistics(level).reshape(2, 2, 6, 4, 4)
    cell = level[1, 3, 4:8, 8:12]
    assert float(found[1, 0, 3, 1, 2]) == pytest.approx(float(cell.mean()), abs=1e-5)
    assert float(found[1, 1, 3, 1, 2]) == pytest.approx(float(cell.std(correction=0)), abs=1e-3)
    assert [len(shallower_half(range(n))) for n in (2, 4)] == [1, 2]


def test_frames_like_the_real_ones_cost_least():
    same = settled(maps, maps)
    brighter = settled(lambda seed: maps(seed, shift=2.0), maps)
    assert same < 0.5 * brighter


def test_frames_that_are_all_alike_cost_more_than_varied_ones():
    """The nearest single point to a crowd is its middle; being there is no likeness."""
    same = settled(lambda seed: maps(seed, spread=2.0), lambda seed: maps(seed, spread=2.0))
    middle = settled(lambda seed: maps(seed, spread=0.0), lambda seed: maps(seed, spread=2.0))
    assert middle > same + 0.05


def test_a_mark_in_one_corner_costs():
    def marked(seed):
        levels = maps(seed)
        for level in levels:
            level[..., : level.shape[-1] // 4, : level.shape[-1] // 4] += 3
        return levels

    assert settled(marked, maps) > settled(maps, maps) + 0.1
    assert settled(marked, marked) < settled(marked, maps) - 0.1


def test_the_loss_is_the_energy_distance_to_both_crowds():
    loss = StatisticsLoss()
    (old, _), (real, _), (ours, _) = maps(0), maps(1, shift=1.0), maps(2)
    distance(loss, [old], [real])
    crowd, real_crowd = cell_statistics(old).double(), cell_statistics(real).double()
    found = float(distance(loss, [ours], [real[:0]]))
    scale = real_crowd.std(0) + 0.05 * real_crowd.std(0).mean()
    x = cell_statistics(ours).double()

    def mean_distance(a, b):
        return float(torch.cdist(a / scale, b / scale).mean()) / x.shape[1] ** 0.5

    expected = 2 * mean_distance(x, real_crowd) - 2 * mean_distance(x, crowd)
    assert found == pytest.approx(expected, rel=1e-3)


def test_few_frames_cost_nothing_and_still_have_a_gradient():
    ours = [m.requires_grad_() for m in maps(0, count=1)]
    loss = StatisticsLoss()
    for _ in range(ENOUGH):
        value = distance(loss, ours, maps(1, count=1))
        assert float(value.detach()) == 0
    value.backward()
    assert all(torch.equal(m.grad, torch.zeros_like(m)) for m in ours)
    assert float(distance(loss, ours, maps(1, count=1)).detach()) != 0


def test_a_step_along_the_gradient_brings_the_frames_nearer():
    loss = StatisticsLoss()
    ours = [m.requires_grad_() for m in maps(0, shift=2.0)]
    distance(loss, ours, maps(1))
    value = distance(loss, ours, maps(2))
    value.backward()
    with torch.no_grad():
        assert all(float(m.grad.mean()) > 0 for m in ours), "darker is nearer"


def test_crowds_are_the_last_frames_and_go_on_from_their_state():
    loss = StatisticsLoss()
    for seed in range(4):
        distance(loss, maps(seed), maps(seed + 50))
    assert {len(crowd) for crowd in loss.kept.values()} == {CAPACITY}
    assert set(loss.kept) == {
        f"{side}.{what}" for side in ("ours", "real") for what in (0, 1, "text")
    }
    assert torch.equal(loss.kept["ours.0"][-32:], cell_statistics(maps(3)[0]))
    again = StatisticsLoss()
    again.load_state_dict({name: value.clone() for name, value in loss.state_dict().items()})
    assert torch.equal(distance(again, maps(8), maps(9)), distance(loss, maps(8), maps(9)))


def spoken(seed: int, swapped: bool = False):
    """Dark and bright frames, each with a caption that says which."""
    bright = torch.arange(32) % 2 == 0
    levels = [m + 3.0 * bright[:, None, None, None] for m in maps(seed, spread=0.3)]
    said = torch.where(bright, 0, 1) if not swapped else torch.where(bright, 1, 0)
    return levels, torch.eye(2)[said].repeat(1, 4)


def test_frames_that_show_what_another_caption_says_cost_more():
    """The crowds of looks are the same; only who has which caption differs."""

    def cost(swapped: bool) -> float:
        loss = StatisticsLoss()
        for seed in (0, 10, 20):
            (ours, text), (real, real_text) = spoken(seed, swapped), spoken(seed + 1)
            value = loss(ours, real, text, real_text)
        return float(value)

    assert cost(swapped=True) > cost(swapped=False) + 0.3


def test_a_frame_is_drawn_to_the_real_ones_of_its_caption():
    """Between dark and bright ones it goes where its caption says, and nowhere without captions."""

    def pull(text, real_text) -> float:
        loss = StatisticsLoss()
        ours = [m.requires_grad_() for m in maps(5, shift=1.5, spread=0.1)]
        real, _ = spoken(1)
        loss(ours, real, text, real_text)
        loss(ours, real, text, real_text).backward()
        return -float(ours[0].grad.mean())

    _, said = spoken(1)
    plain = pull(silent(maps(0)), silent(maps(0)))
    assert pull(said[:1].expand(32, -1), said) > plain + 1e-6 > pull(said[1:2].expand(32, -1), said)
