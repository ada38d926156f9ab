"""What a noise path is: how a base model mixes clip and noise, and what its output means.

The kinds of paths are in `noise`.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor


class Reading(NamedTuple):
    """The clip and the noise (B, C, F, h, w) that an output at a point stands for."""

    x0: Tensor
    eps: Tensor


class NoisePath(Protocol):
    """The noise levels of a base model, and what its network predicts (``prediction``)."""

    @property
    def end(self) -> float:
        """The level at which a sampling run ends."""
        ...

    @property
    def lowest(self) -> float:
        """The level at which stored trajectories end: 0, or where another model takes over."""
        ...

    @property
    def in_noise(self) -> bool:
        """Whether trajectories begin with pure noise; else with the states at which those of
        another model end.
        """
        ...

    @property
    def places(self) -> int:
        """Places of a trajectory where the settings say nothing."""
        ...

    @property
    def prediction(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]:
        """The parameters that distinguish it from others of its kind."""
        ...

    def levels(self, count: int) -> Tensor:
        """``count`` levels from little noise to most, evenly spaced as the model's samplers do;
        the last one is that at which trajectories begin. Raises ValueError for a count that is not
        possible.
        """
        ...

    def few_steps(self, steps: int, places: int) -> Tensor:
        """The levels (steps,), from most noise down, that sampling in so many steps calls a student
        at that was trained at ``places`` levels. Raises ValueError for a number of steps that is
        not possible.
        """
        ...

    def own_steps(self, steps: int) -> int:
        """How many of ``steps`` sampling steps, from pure noise to the clip, lie on this path."""
        ...

    @property
    def teacher(self) -> NoisePath:
        """The same path with the levels at which the base model itself is sampled."""
        ...

    def share(self, level: Tensor) -> Tensor:
        """How far from the clean end ``level`` is, 0 to 1, as its samplers space levels."""
        ...

    def model_time(self, level: Tensor) -> Tensor:
        """What the network is called with at ``level``."""
        ...

    def alpha_sigma(
        self, level: Tensor, ndim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` of ``level`` as tensors (B, 1, ..., 1) of ``ndim`` axes."""
        ...

    def steadiness(self, level: Tensor, ndim: int) -> Tensor:
        """1 over how much an error of the network's output counts in `Reading.x0`, a tensor
        (B, 1, ..., 1) of ``ndim`` axes.
        """
        ...

    def add_noise(self, x0: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        """``z`` at ``level`` (B,) of clean latents and noise (B, C, F, h, w).

        With a `Reading` it is one step of the deterministic solver (DDIM, eta 0, arXiv 2010.02502
        eq. 12; Euler on a flow): the level that the point came from is already in the reading.
        """
        ...

    def read(self, z: Tensor, output: Tensor, level: Tensor) -> Reading:
        """What the network's ``output`` at the point ``z`` means; all (B, C, F, h, w)."""
        ...

    def consistency(self, z: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        """``f(z)`` (B, C, F, h, w): the clip that the point ``z`` leads to, with ``f(z) = z`` at
        level 0.
        """
        ...

    def landing(self, z: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        """The state at `lowest` that the prediction ``x0`` leads to from the point ``z``; the clip
        itself where that is the clean end. All (B, C, F, h, w).
        """
        ...

    def aim(self, z: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """The inverse of `landing`: the prediction that leads from ``z`` to ``state``."""
        ...

    def renoise(self, state: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        """A point at ``level`` (B,) of ``state``, one at `lowest`, and new noise ``eps``: what
        consistency sampling does between two steps.
        """
        ...

    def bounded(self, timestep_scaling: float, sigma_data: float) -> NoisePath:
        """The same path with these constants in `consistency`, where it has any."""
        ...

    def to(self, device: torch.device | str) -> NoisePath:
        """A copy with its tables on ``device``; levels passed to it must be on that device too."""
        ...


class Whole:
    """What the paths from pure noise to the clip have in common: a trajectory ends at the clip."""

    lowest: ClassVar[float] = 0
    in_noise: ClassVar[bool] = True

    def own_steps(self, steps: int) -> int:
        return steps

    def landing(self, z: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        return x0

    def aim(self, z: Tensor, state: Tensor, level: Tensor) -> Tensor:
        return state

    def renoise(self: NoisePath, state: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return self.add_noise(state, eps, level)


def prepare(
    path: NoisePath, a: Tensor, b: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``a`` and ``b`` (B, ...) in the type to compute in, and alpha and sigma at ``level`` to
    multiply them with. Raises ValueError where shapes do not fit.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"the two tensors must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if level.ndim == 1 and len(level) not in (1, len(a)):
        raise ValueError(
            f"`level` has {len(level)} values for a batch of {len(a)}; give one level per video."
        )
    dtype = functools.reduce(torch.promote_types, (a.dtype, b.dtype), torch.float32)
    alpha, sigma = path.alpha_sigma(level, a.ndim, dtype)
    return a.to(dtype), b.to(dtype), alpha, sigma
