"""How the teacher is sampled and what training reads of it, by settings and family."""

from __future__ import annotations

import pytest
import torch

from trainer.config import ConfigError, TrainConfig, load_config
from trainer.diffusion.noise import VariancePreserving
from trainer.distill.draws import Sizes, draw_step
from trainer.distill.plan import FEW_STEPS, FRESH, REPLAY, TRAJECTORY, TeacherPlan
from trainer.families import modelscope, wan
from trainer.families.wan_graph import flow_at

UNET = modelscope.FAMILY, VariancePreserving(torch.linspace(1, 0.01, 1000))
FLOW = wan.FAMILY, flow_at()


def settings(given=None, preset="recipe") -> TrainConfig:
    model = {"model": "no folder"}  # the mini model recommends settings of its own
    return load_config(preset=preset, overrides={**model, **(given or {})})


def drawn(config: TrainConfig, kind, steps: int = 40) -> dict[int, set[int]]:
    """Every place that training draws, by source."""
    sizes = Sizes(TeacherPlan.of(config, *kind), (1, 1, 1, 1), 8, 1, 1, 1)
    found: dict[int, set[int]] = {TRAJECTORY: set(), FRESH: set(), REPLAY: set()}
    for step in range(steps):
        draws = draw_step(config, sizes, step)
        for source, place in zip(draws.source.tolist(), draws.place.tolist(), strict=True):
            found[source].add(place)
    return found


def test_what_is_not_set_is_the_familys():
    plan = TeacherPlan.of(settings(), *UNET)
    assert (plan.places, plan.stride, len(plan.rollout)) == (50, 2, 25)
    assert (plan.guidance, plan.guidance_scale) == ((5.0, 15.0), 9.0)
    plan = TeacherPlan.of(settings(), *FLOW)
    assert (plan.places, plan.stride, len(plan.rollout)) == (48, 2, 24)
    assert (plan.guidance, plan.guidance_scale) == ((4.0, 4.0), 5.0)
    for preset in ("paper", "lcm"):
        plan = TeacherPlan.of(settings(preset=preset), *FLOW)
        assert (plan.places, plan.stride, plan.guidance) == (48, 1, (4.0, 4.0))


def test_what_is_set_holds_in_every_family():
    """Also what config files of earlier versions hold, which name every value."""
    old = {
        "trajectory.ddim_timesteps": 50, "trajectory.guidance_min": 5.0, "data.library_steps": 25,
        "trajectory.guidance_max": 15.0, "data.library_guidance": 8.0,
    }  # fmt: skip
    for kind in (UNET, FLOW):
        plan = TeacherPlan.of(settings(old), *kind)
        assert (plan.places, plan.stride, plan.guidance) == (50, 2, (5.0, 15.0))
        assert plan.library_guidance == 8.0
    assert TeacherPlan.of(settings({"data.library_guidance": 0}), *FLOW).guidance_scale == 1


def test_a_bound_of_guidance_that_does_not_fit_the_familys_is_refused():
    config = settings({"trajectory.guidance_max": 2})
    with pytest.raises(
        ConfigError, match=r"guidance_min`=4.0 is above `trajectory.guidance_max`=2"
    ):
        TeacherPlan.of(config, *FLOW)


@pytest.mark.parametrize("steps", FEW_STEPS)
def test_points_of_a_flow_are_at_exactly_the_levels_of_few_step_sampling(steps):
    plan = TeacherPlan.of(settings(preset="paper"), *FLOW)
    places = plan.stops(TRAJECTORY)[FEW_STEPS.index(steps)]
    assert torch.equal(plan.levels[places], plan.path.few_steps(steps, plan.places))


def test_the_recipe_trains_a_flow_at_those_levels_and_at_random_ones():
    every = {"data.batch_size": 64}
    stops = {int(48 - 48 * k / steps) - 1 for steps in FEW_STEPS for k in range(steps)}
    only = drawn(settings({**every, "trajectory.few_step_bias": 1.0}), FLOW)
    assert only[REPLAY] == stops - {47} and only[TRAJECTORY] == {41, 47}
    mixed = drawn(settings(every), FLOW)
    assert mixed[REPLAY] == set(range(47)), "below pure noise"
    assert mixed[TRAJECTORY] == {39, 41, 43, 45, 47}


@pytest.mark.parametrize("kind", [UNET, FLOW], ids=["unet", "flow"])
@pytest.mark.parametrize(
    "given",
    [
        {}, {"trajectory.few_step_bias": 1.0}, {"trajectory.real_min_timestep": 0},
        {"motion.target": "consistency"}, {"data.library_steps": 10},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_kept_is_what_is_drawn(kind, given):
    config = settings({"data.batch_size": 64, **given})
    plan = TeacherPlan.of(config, *kind)
    assert set(plan.kept) == drawn(config, kind)[TRAJECTORY]


def test_without_points_on_its_trajectories_only_their_noise_counts():
    config = settings({"trajectory.real_probability": 0.0})
    assert TeacherPlan.of(config, *FLOW).kept == (47,)
