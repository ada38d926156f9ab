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
from ..diffusion.noise import TRAIN_TIMESTEPS, NoisePath, few_step_places

TRAJECTORY, FRESH, REPLAY = 0, 1, 2
"""Where a point comes from.

A real (or teacher's) trajectory, a new prediction from noise, a stored prediction.
"""
FEW_STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Sizes:
    """What draws are made from: the noise levels of the model, latent shape (C, f, h, w) and frames
    of a clip, and how many rows each source has now.
    """

    path: NoisePath
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
    ``start`` (B, C, F, h, w); ``frames`` (B, K) frame numbers.
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
    low, high = config.recipe.trajectory.guidance_min, config.recipe.trajectory.guidance_max
    shape = (batch, *sizes.latent)

    def rows(count: int) -> Tensor:
        return (torch.rand(batch, generator=g) * max(count, 1)).long().clamp_max(max(count, 1) - 1)

    source = _draw_source(config, sizes, batch, g)
    return StepDraws(
        source=source,
        place=_draw_place(config, sizes.path, source, g),
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
    )


def _draw_source(config: TrainConfig, sizes: Sizes, batch: int, g: torch.Generator) -> Tensor:
    """A Bernoulli draw for each sample (paper, sec. 3.3); without stored predictions, replays are
    fresh.
    """
    real = torch.rand(batch, generator=g) < config.recipe.trajectory.real_probability
    replay = torch.rand(batch, generator=g) < config.recipe.trajectory.replay_probability
    own = torch.where(replay & (sizes.replays > 0), REPLAY, FRESH)
    return torch.where(real, TRAJECTORY, own)


def _draw_place(config: TrainConfig, path: NoisePath, source: Tensor, g: torch.Generator) -> Tensor:
    """Places (B,) on the ascending trajectory, uniform, but a share ``few_step_bias`` of the points
    is at the levels of few-step sampling, equally often for each number of steps.
    """
    batch, count = len(source), config.recipe.trajectory.ddim_timesteps
    ranges = [_range(config, path, kind) for kind in (TRAJECTORY, FRESH, REPLAY)]
    stops = [few_step_places(steps, count).tolist() for steps in FEW_STEPS]
    biased, which, where, uniform = torch.rand(4, batch, generator=g).tolist()
    drawn = []
    for k, kind in enumerate(source.tolist()):
        low, high = ranges[kind]
        reached = [[stop for stop in row if low <= stop <= high] for row in stops]
        tables = [row for row in reached if row]
        if biased[k] < config.recipe.trajectory.few_step_bias and tables:
            table = tables[int(which[k] * len(tables))]
            drawn.append(table[int(where[k] * len(table))])
        else:
            drawn.append(low + int(uniform[k] * (high - low + 1)))
    return torch.where(source == TRAJECTORY, _visited(config, drawn), torch.tensor(drawn))


def _visited(config: TrainConfig, places: list[int]) -> Tensor:
    """The next place at or above each of ``places`` at which the teacher's rollout has been."""
    top, stride = config.recipe.trajectory.ddim_timesteps - 1, config.library_stride
    return torch.tensor([top - (top - place) // stride * stride for place in places])


def lowest_place(config: TrainConfig, path: NoisePath, source: int) -> int:
    """The lowest place at which points of ``source`` are drawn, where the teacher's rollout has
    been.
    """
    return int(_visited(config, [_range(config, path, source)[0]])[0])


def _range(config: TrainConfig, path: NoisePath, source: int) -> tuple[int, int]:
    """First and last place on the trajectory that points of ``source`` may have.

    If motion is compared with ends, a step trains what sampling does: the top levels start from
    noise, where the base model's trajectory is almost pure noise; lower levels start from the
    student's own predictions.
    """
    count = config.recipe.trajectory.ddim_timesteps
    if not config.aims_at_ends:
        return 0, count - 1
    if source != TRAJECTORY:
        return 0, count - 2
    noisy = timesteps_of(path, path.levels(count)) >= config.recipe.trajectory.real_min_timestep
    return min(int((~noisy).sum()), count - 1), count - 1


def timesteps_of(path: NoisePath, level: Tensor) -> Tensor:
    """Levels as timesteps of 0 to 1000, the unit in which settings give them."""
    return (path.share(level) * TRAIN_TIMESTEPS).round()


def draw_frames(batch: int, frames: int, per_clip: int, g: torch.Generator) -> Tensor:
    """One frame from each of ``per_clip`` equal parts of the clip: (B, K) int64, ascending."""
    if per_clip > frames:
        raise ValueError(
            f"`data.frames_per_clip`={per_clip} is more than the clip's {frames} frames."
        )
    part = (torch.arange(per_clip) + torch.rand(batch, per_clip, generator=g)) * (frames / per_clip)
    return part.long().clamp_max(frames - 1)
