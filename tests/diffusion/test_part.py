"""A part of a flow: its levels, the states at its ends, and a Gaussian with known trajectories."""

from __future__ import annotations

import pytest
import torch

from trainer.diffusion.noise import RectifiedFlow
from trainer.diffusion.part import FlowPart
from trainer.diffusion.sampling import sample_lcm, sample_ode

BOUNDARY, SHIFT = 0.875, 7.0
HIGH, LOW = FlowPart(SHIFT, low=BOUNDARY), FlowPart(SHIFT, high=BOUNDARY)
WHOLE = RectifiedFlow(SHIFT)
SPREAD = 3.0
"""Standard deviation of the clips of the toy."""
SHAPE = (4000, 1, 1, 4, 4)
TEXT = torch.zeros(SHAPE[0], 1, 1)


def spread(t):
    """Standard deviation at level ``t`` of the toy: independent clip and noise."""
    return ((1 - t) ** 2 * SPREAD**2 + t**2) ** 0.5


def velocity(latents, level, text):
    """Of the toy's exact flow: a point keeps its quantile, so it is multiplied by spreads."""
    t = level.view(-1, 1, 1, 1, 1)
    return ((t - 1) * SPREAD**2 + t) / spread(t) ** 2 * latents


def student(path):
    """The perfect student on ``path``: the velocity that leads straight to the trajectory's end."""

    def predict(latents, level, text):
        t = level.view(-1, 1, 1, 1, 1)
        state = spread(torch.tensor(path.lowest)) / spread(t) * latents
        return (latents - path.aim(latents, state, level)) / t

    return predict


def noise(seed, scale=1.0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * scale


def has_spread(found, wanted):
    """Within 1 %: 64000 numbers have a standard error of 0.3 %."""
    assert abs(float(found.std()) / wanted - 1) < 0.01


def test_the_two_halves_have_the_levels_of_the_whole():
    both = torch.cat([LOW.levels(24), HIGH.levels(24)])
    torch.testing.assert_close(both, WHOLE.levels(48))
    assert (LOW.places, HIGH.places) == (24, 24)
    assert float(LOW.levels(24)[-1]) == BOUNDARY < float(HIGH.levels(24)[0])
    assert float(HIGH.levels(24)[-1]) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_few_steps_are_those_of_the_whole_on_each_side(steps):
    both = torch.cat([part.few_steps(steps, 24) for part in (HIGH, LOW)])
    torch.testing.assert_close(both, WHOLE.few_steps(2 * steps, 48))
    assert HIGH.own_steps(2 * steps) == LOW.own_steps(2 * steps) == steps


def test_the_base_models_own_levels_end_where_the_part_does():
    part = FlowPart(SHIFT, teacher_shift=12.0, low=BOUNDARY)
    levels = part.teacher.levels(10)
    assert float(levels[0]) > BOUNDARY and float(levels[-1]) == 1.0
    other = FlowPart(SHIFT, teacher_shift=12.0, high=BOUNDARY).teacher.levels(10)
    assert float(other[-1]) == pytest.approx(BOUNDARY) and float(other[0]) > 0


def test_shares_are_counted_within_the_part():
    for part in (HIGH, LOW):
        torch.testing.assert_close(part.share(part.levels(24)), torch.arange(1, 25) / 24)
    assert (HIGH.end, HIGH.lowest, LOW.end, LOW.lowest) == (BOUNDARY, BOUNDARY, 0, 0)
    assert HIGH.in_noise and not LOW.in_noise


def test_a_part_is_built_again_from_its_config_and_a_whole_one_is_the_flow():
    assert FlowPart(**HIGH.config) == HIGH and FlowPart(**LOW.config) == LOW
    whole, level = FlowPart(SHIFT), torch.tensor([0.3, 0.9, 1.0])
    z, other = noise(0)[:3], noise(1)[:3]
    assert torch.equal(whole.levels(48), WHOLE.levels(48))
    assert torch.equal(whole.few_steps(4, 48), WHOLE.few_steps(4, 48))
    assert whole.landing(z, other, level) is other and whole.aim(z, other, level) is other
    torch.testing.assert_close(
        whole.renoise(z, other, level), WHOLE.renoise(z, other, level), rtol=1e-5, atol=1e-6
    )


def test_landing_is_a_step_of_euler_and_aim_undoes_it():
    level = HIGH.levels(24)[[0, 11, 23]]
    z, output = noise(0)[:3], noise(1)[:3]
    x0, eps = HIGH.read(z, output, level)
    state = HIGH.landing(z, x0, level)
    torch.testing.assert_close(state, HIGH.add_noise(x0, eps, torch.tensor(BOUNDARY)))
    t = level.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(state, z - (t - BOUNDARY) * output)
    torch.testing.assert_close(HIGH.aim(z, state, level), x0, rtol=1e-3, atol=1e-3)
    at_end = torch.full((3,), BOUNDARY)
    assert torch.equal(HIGH.landing(z, x0, at_end), z)


@pytest.mark.parametrize("place", [0, 7, 23])
def test_new_noise_on_a_state_gives_the_mixture_of_its_level(place):
    """Share of the clip, and deviation of noise that is in part the state's own."""
    level = HIGH.levels(24)[place].expand(SHAPE[0])
    clip, own, new = noise(0), noise(1), noise(2)
    state = HIGH.add_noise(clip, own, torch.full_like(level, BOUNDARY))
    found = HIGH.renoise(state, new, level)
    t = float(level[0])
    left = found - (1 - t) * clip
    has_spread(left, t)
    assert abs(float((left * clip).mean())) < 0.02
    same = HIGH.renoise(state, new, torch.full_like(level, BOUNDARY))
    torch.testing.assert_close(same, state)
    pure = HIGH.renoise(state, new, torch.ones_like(level))
    torch.testing.assert_close(pure, new)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_pair_of_students_samples_the_toy(steps):
    start = noise(3)
    states = sample_lcm(student(HIGH), HIGH, TEXT, SHAPE, steps, init_latents=start, seed=0)
    has_spread(states, spread(BOUNDARY))
    clips = sample_lcm(student(LOW), LOW, TEXT, SHAPE, steps, init_latents=states, seed=1)
    has_spread(clips, SPREAD)


def test_noise_on_a_state_as_on_a_clip_would_lose_the_clip():
    """Its share of the point, by regression: as if the state were the clip, an eighth is left."""
    level = HIGH.levels(24)[12].expand(SHAPE[0])
    clip = noise(0, SPREAD)
    state = HIGH.add_noise(clip, noise(1), torch.full_like(level, BOUNDARY))
    shares = [
        float((mixed(state, noise(2), level) * clip).mean() / clip.square().mean())
        for mixed in (HIGH.renoise, HIGH.add_noise)
    ]
    t = float(level[0])
    assert shares[0] == pytest.approx(1 - t, abs=0.01)
    assert shares[1] == pytest.approx((1 - t) * (1 - BOUNDARY), abs=0.01)


@pytest.mark.parametrize("order", [1, 2])
def test_the_teachers_solver_follows_the_trajectory_through_both_parts(order):
    start = noise(3)
    steps = 200 if order == 1 else 60
    states = sample_ode(velocity, HIGH, TEXT, SHAPE, steps, order=order, init_latents=start, seed=0)
    torch.testing.assert_close(states, spread(BOUNDARY) * start, rtol=0.02, atol=0.02)
    clips = sample_ode(velocity, LOW, TEXT, SHAPE, steps, order=order, init_latents=states, seed=0)
    torch.testing.assert_close(clips, SPREAD * start, rtol=0.03, atol=0.03)


def test_the_second_part_needs_the_states_of_the_first():
    for sampler in (sample_lcm, sample_ode):
        with pytest.raises(ValueError, match="init_latents"):
            sampler(velocity, LOW, TEXT, SHAPE, 2, seed=0)
