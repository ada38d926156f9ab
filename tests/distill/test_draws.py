from __future__ import annotations

import pytest
import torch

from trainer.config import TrainConfig, load_config
from trainer.diffusion.noise import RectifiedFlow, VariancePreserving, few_step_places
from trainer.distill.draws import Sizes, StepDraws, draw_frames
from trainer.distill.draws import draw_step as draw
from trainer.distill.plan import FRESH, REPLAY, TRAJECTORY, TeacherPlan
from trainer.families import modelscope

PATH = VariancePreserving(torch.linspace(1, 0.01, 1000))
FLOW = RectifiedFlow(5.0)


def plan_of(config: TrainConfig) -> TeacherPlan:
    return TeacherPlan.of(config, modelscope.FAMILY, PATH)


def draw_step(config: TrainConfig, step: int, rank: int = 0, replays: int = 7) -> StepDraws:
    sizes = Sizes(plan_of(config), (4, 8, 4, 4), 8, prompts=10, motions=5, replays=replays)
    return draw(config, sizes, step, rank)


def test_draws_depend_on_seed_step_and_rank_alone():
    config = load_config()
    a, b = draw_step(config, 7), draw_step(config, 7)
    assert torch.equal(a.noise, b.noise) and torch.equal(a.place, b.place)
    for other in (draw_step(config, 8), draw_step(config, 7, rank=1)):
        assert not torch.equal(a.noise, other.noise)


def test_sources_follow_their_probabilities():
    config = load_config(
        overrides={
            "data.batch_size": 256,
            "trajectory.real_probability": 0.5,
            "trajectory.replay_probability": 0.8,
        }
    )
    source = draw_step(config, 0).source
    shares = [float((source == kind).float().mean()) for kind in (TRAJECTORY, FRESH, REPLAY)]
    assert shares == pytest.approx([0.5, 0.1, 0.4], abs=0.09)


def test_nothing_is_replayed_before_something_was_stored():
    config = load_config(overrides={"data.batch_size": 64, "trajectory.replay_probability": 1.0})
    assert REPLAY not in draw_step(config, 0, replays=0).source.tolist()


def test_biased_points_are_where_few_step_sampling_stops():
    config = load_config(overrides={"data.batch_size": 256, "trajectory.few_step_bias": 1.0})
    stops = {int(place) for steps in (1, 2, 4, 8) for place in few_step_places(steps)}
    drawn = set(draw_step(config, 0).place.tolist())
    assert drawn <= stops and len(drawn) == len(stops)


def timesteps(overrides, *kinds):
    """Timesteps of all points of these kinds in 2048 draws, uniform ones."""
    uniform = {"data.batch_size": 256, "trajectory.few_step_bias": 0.0}
    config, found = load_config(overrides={**uniform, **overrides}), set()
    for step in range(8):
        drawn = draw_step(config, step)
        wanted = torch.isin(drawn.source, torch.tensor(kinds))
        found |= {20 * (int(place) + 1) - 1 for place in drawn.place[wanted]}
    return found


def test_aiming_at_ends_the_trajectory_gives_the_beginning_and_the_student_the_rest():
    every = {"data.library_steps": 50}
    assert timesteps(every, TRAJECTORY) == set(range(819, 1000, 20))  # 819: the first from 800 on
    assert timesteps({}, FRESH, REPLAY) == set(range(19, 980, 20))


def test_points_lie_where_a_rollout_in_fewer_steps_has_been():
    assert timesteps({"data.library_steps": 25}, TRAJECTORY) == set(range(839, 1000, 40))
    assert timesteps({"data.library_steps": 17}, TRAJECTORY) == set(range(839, 1000, 40)), "or more"
    assert timesteps({"data.library_steps": 10}, TRAJECTORY) == {899, 999}
    assert timesteps({"data.library_steps": 1}, TRAJECTORY) == {999}
    assert timesteps({"data.library_steps": 10}, FRESH, REPLAY) == set(range(19, 980, 20))


@pytest.mark.parametrize(
    "other", [{"motion.target": "consistency"}, {"videos": "some videos"}], ids=["paper", "videos"]
)
def test_without_stored_ends_every_source_covers_the_whole_trajectory(other):
    for kind in (TRAJECTORY, REPLAY):
        assert timesteps(other, kind) == set(range(19, 1000, 20))


def test_frames_are_stratified_in_time():
    frames = draw_frames(300, 16, 2, torch.Generator().manual_seed(0))
    assert frames[:, 0].max() == 7 and frames[:, 1].min() == 8
    assert sorted(set(frames.flatten().tolist())) == list(range(16))
    with pytest.raises(ValueError, match="frames_per_clip"):
        draw_frames(1, 2, 3, torch.Generator())
