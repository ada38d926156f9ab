"""All random numbers of one training step, drawn first and in one place.

Draws depend on ``(seed, step, rank)`` alone and are made on the CPU, so a resumed run, a run on
another device and an uninterrupted run use the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adversarial.augment import AugmentDraws, draw_augment
from ..config import TrainConfig
from .plan import FRESH, REPLAY, TRAJECTORY, TeacherPlan


@dataclass(frozen=True)
class Sizes:
    """What draws are made from: the plan of the run, latent shape (C, f, h, w) and frames of a
    clip, and how many rows each source has now.
    """

    plan: TeacherPlan
    latent: tuple[int, int, int, int]
    frames: int
    prompts: int
    motions: int
    replays: int


@dataclass(frozen=True)
class StepDraws:
    """Draws of one step for a batch of B clips; integer tensors are int64.

    ``source`` (B,); ``place`` (B,) in 0..T-1, the place on the trajectory's ascending levels;
    ``guidance`` (B,) in LCM form; ``prompt``, ``motion``, ``replay`` (B,) rows; ``noise`` and
    ``start`` (B, C, F, h, w); ``frames`` (B, K) frame numbers; ``part_place`` and ``real_place``
    (2,), below 1, where the part of the student's and the real frames lies that is looked at.
    """

    source: Tensor
    place: Tensor
    guidance: Tensor
    prompt: Tensor
    motion: Tensor
    replay: Tensor
    noise: Tensor
    start: Tensor
    frames: Tensor
    augment_fake: AugmentDraws
    augment_real: AugmentDraws
    image_seed: int
    mismatch_seed: int
    part_place: Tensor
    real_place: Tensor


def generator_for(seed: int, step: int, rank: int = 0, stream: int = 0) -> torch.Generator:
    """A CPU generator seeded by its arguments alone."""
    mixed = seed
    for part in (step, rank, stream):  # a 64-bit linear congruence keeps neighbouring steps apart
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def draw_step(config: TrainConfig, sizes: Sizes, step: int, rank: int = 0) -> StepDraws:
    """The draws of step ``step``.

    All numbers are drawn whether used or not, so that options do not change the others.
    """
    g = generator_for(config.seed, step, rank)
    batch, per_clip = config.data.batch_size, config.data.frames_per_clip
    low, high = sizes.plan.guidance
    shape = (batch, *sizes.latent)

    def rows(count: int) -> Tensor:
        return (torch.rand(batch, generator=g) * max(count, 1)).long().clamp_max(max(count, 1) - 1)

    source = _draw_source(config, sizes, batch, g)
    return StepDraws(
        source=source,
        place=_draw_place(sizes.plan, source, g),
        guidance=low + (high - low) * torch.rand(batch, generator=g),
        prompt=rows(sizes.prompts),
        motion=rows(sizes.motions),
        replay=rows(sizes.replays),
        noise=torch.randn(shape, generator=g),
        start=torch.randn(shape, generator=g),
        frames=draw_frames(batch, sizes.frames, per_clip, g),
        augment_fake=draw_augment(config.recipe.adversarial.augment, batch * per_clip, g),
        augment_real=draw_augment(config.recipe.adversarial.augment, batch * per_clip, g),
        image_seed=int(torch.randint(2**31, (1,), generator=g)),
        mismatch_seed=int(torch.randint(2**31, (1,), generator=g)),
        part_place=torch.rand(2, generator=g),
        real_place=torch.rand(2, generator=g),
    )


def _draw_source(config: TrainConfig, sizes: Sizes, batch: int, g: torch.Generator) -> Tensor:
    """A Bernoulli draw for each sample (paper, sec. 3.3); without stored predictions, replays are
    fresh.
    """
    real = torch.rand(batch, generator=g) < config.recipe.trajectory.real_probability
    replay = torch.rand(batch, generator=g) < config.recipe.trajectory.replay_probability
    own = torch.where(replay & (sizes.replays > 0), REPLAY, FRESH)
    return torch.where(real, TRAJECTORY, own)


def _draw_place(plan: TeacherPlan, source: Tensor, g: torch.Generator) -> Tensor:
    """Places (B,) on the ascending trajectory, uniform, but a share ``few_step_bias`` of the points
    is at the levels of few-step sampling, equally often for each number of steps.
    """
    kinds = (TRAJECTORY, FRESH, REPLAY)
    spans, stops = [plan.span(kind) for kind in kinds], [plan.stops(kind) for kind in kinds]
    biased, which, where, uniform = torch.rand(4, len(source), generator=g).tolist()
    drawn = []
    for k, kind in enumerate(source.tolist()):
        low, high = spans[kind]
        tables = stops[kind]
        if biased[k] < plan.told.few_step_bias and tables:
            table = tables[int(which[k] * len(tables))]
            place = table[int(where[k] * len(table))]
        else:
            place = low + int(uniform[k] * (high - low + 1))
        drawn.append(plan.visited(place) if kind == TRAJECTORY else place)
    return torch.tensor(drawn)


def draw_frames(batch: int, frames: int, per_clip: int, g: torch.Generator) -> Tensor:
    """One frame from each of ``per_clip`` equal parts of the clip: (B, K) int64, ascending."""
    if per_clip > frames:
        raise ValueError(
            f"`data.frames_per_clip`={per_clip} is more than the clip's {frames} frames."
        )
    part = (torch.arange(per_clip) + torch.rand(batch, per_clip, generator=g)) * (frames / per_clip)
    return part.long().clamp_max(frames - 1)
