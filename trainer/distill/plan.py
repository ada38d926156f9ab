"""How the teacher of a run is sampled, and which points of its trajectories training reads: by the
settings and, where they are silent, as the base model's family says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..config import TrainConfig, with_overrides
from ..diffusion.noise import TRAIN_TIMESTEPS, few_step_places
from ..diffusion.path import NoisePath
from ..families import Family, VideoModel
from ..settings import TrajectoryConfig
from ..settings.method import check_guidance

FEW_STEPS = (1, 2, 4, 8)
TRAJECTORY, FRESH, REPLAY = 0, 1, 2
"""Where a point comes from.

A real (or teacher's) trajectory, a new prediction from noise, a stored prediction.
"""


@dataclass(frozen=True)
class TeacherPlan:
    """A trajectory has ``places`` places on the levels of ``path``; rollouts visit every
    ``stride``-th from the top. ``guidance`` is the range drawn from, ``library_guidance`` that of
    example clips, both as LCM's w. ``aims_at_ends`` and ``told`` are settings.
    """

    path: NoisePath
    places: int
    stride: int
    guidance: tuple[float, float]
    library_guidance: float
    aims_at_ends: bool
    told: TrajectoryConfig

    @classmethod
    def of(cls, config: TrainConfig, family: Family | VideoModel, path: NoisePath) -> TeacherPlan:
        """The plan of ``config``. Raises ConfigError where one bound of the guidance is set and
        does not fit the other, which is the family's.
        """
        told, own = config.recipe.trajectory, family.teaching
        least, most = own.guidance
        least = least if told.guidance_min is None else told.guidance_min
        most = most if told.guidance_max is None else told.guidance_max
        check_guidance(least, most)
        places, guidance = told.ddim_timesteps or path.places, config.data.library_guidance
        steps = config.data.library_steps or own.library_steps
        return cls(
            path=path,
            places=places,
            stride=max(1, places // steps) if config.aims_at_ends else 1,
            guidance=(least, most),
            library_guidance=own.library_guidance if guidance is None else guidance,
            aims_at_ends=config.aims_at_ends,
            told=told,
        )

    @classmethod
    def of_model(cls, config: TrainConfig, model: VideoModel) -> TeacherPlan:
        """The plan of ``config`` with its base model."""
        return cls.of(config, model, model.noise)

    @property
    def guidance_scale(self) -> float:
        """The CFG scale of example clips, and of the base model's clips in previews."""
        return self.library_guidance + 1

    @property
    def levels(self) -> Tensor:
        """The levels (places,) of a trajectory, from little noise to most."""
        return self.path.levels(self.places)

    @property
    def rollout(self) -> tuple[int, ...]:
        """The places that a rollout visits, ascending; the last is pure noise."""
        return tuple(range(self.places - 1, -1, -self.stride))[::-1]

    @property
    def kept(self) -> tuple[int, ...]:
        """Those that training reads, ascending: all if motion is compared with the student's own
        next point, else the places at which points are drawn, and the noise.
        """
        if not self.aims_at_ends:
            return self.rollout
        read = {self.places - 1}
        if self.told.real_probability:
            low, high = self.span(TRAJECTORY)
            stops = self.stops(TRAJECTORY)
            read |= {self.visited(place) for row in stops for place in row}
            if self.told.few_step_bias < 1 or not stops:
                read |= {self.visited(place) for place in range(low, high + 1)}
        return tuple(sorted(read))

    def clip_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a stored clip of latent ``shape`` (C, F, h, w): its end and the states that
        training reads, in fp16. Noise is drawn again; another beginning is stored too.
        """
        states = len(self.kept) + (0 if self.path.in_noise else 1)
        return states * math.prod(shape) * 2

    def visited(self, place: int) -> int:
        """The next place at or above ``place`` at which rollouts have been."""
        top = self.places - 1
        return top - (top - place) // self.stride * self.stride

    def span(self, source: int) -> tuple[int, int]:
        """First and last place on the trajectory that points of ``source`` may have.

        If motion is compared with ends, a step trains what sampling does: the top levels start from
        noise, where the base model's trajectory is almost pure noise; lower levels start from the
        student's own predictions.
        """
        top = self.places - 1
        if not self.aims_at_ends:
            return 0, top
        if source != TRAJECTORY:
            return 0, top - 1
        noisy = timesteps_of(self.path, self.levels) >= self.told.real_min_timestep
        return min(int((~noisy).sum()), top), top

    def stops(self, source: int) -> list[list[int]]:
        """The places of few-step sampling that points of ``source`` may have, a list for each
        number of steps that has some.
        """
        low, high = self.span(source)
        every = (few_step_places(steps, self.places).tolist() for steps in FEW_STEPS)
        reached = ([place for place in row if low <= place <= high] for row in every)
        return [row for row in reached if row]


def fitted(config: TrainConfig, model: VideoModel) -> TrainConfig:
    """``config`` with the settings that the training of ``model`` fixes."""
    return with_overrides(config, model.fixed) if model.fixed else config


def timesteps_of(path: NoisePath, level: Tensor) -> Tensor:
    """Levels as timesteps of 0 to 1000, the unit in which settings give them."""
    return (path.share(level) * TRAIN_TIMESTEPS).round()
