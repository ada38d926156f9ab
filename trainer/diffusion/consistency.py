"""The consistency function of LCM and the timesteps of few-step sampling.

``f(z, t) = c_skip(t) z + c_out(t) x0(z, t)`` with ``f(z, 0) = z`` (arXiv 2310.04378, eq. 6 and
appendix; constants as in diffusers' ``scheduling_lcm.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LCMScheduler
from torch import Tensor

from .schedule import NoiseSchedule
from .solver import TRAIN_TIMESTEPS, TRAJECTORY_STEPS

TIMESTEP_SCALING = 4.0
"""MCM's value. diffusers' own default is 10; samplers must be given the one trained with."""
SIGMA_DATA = 0.5


def boundary_scalings(
    t: Tensor, timestep_scaling: float = TIMESTEP_SCALING, sigma_data: float = SIGMA_DATA
) -> tuple[Tensor, Tensor]:
    """``(c_skip, c_out)``, each float32 of the shape of ``t``.

    With ``s = timestep_scaling t``: ``c_skip = sigma_data^2 / (s^2 + sigma_data^2)`` and
    ``c_out = s / sqrt(s^2 + sigma_data^2)``. At ``t`` = 0 they are 1 and 0; -1, the clean end,
    counts as 0.
    """
    scaled = t.clamp(min=0).float() * timestep_scaling
    power = scaled**2 + sigma_data**2
    return sigma_data**2 / power, scaled / power.sqrt()


def consistency_function(
    latents: Tensor,
    eps: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    timestep_scaling: float = TIMESTEP_SCALING,
    sigma_data: float = SIGMA_DATA,
) -> Tensor:
    """The clip that latents at timesteps ``t`` (B,) lead to, ``c_skip z + c_out x0``.

    ``latents`` and the predicted ``eps`` are (B, C, F, h, w); so is the result, in float32 or
    float64.
    """
    x0 = schedule.x0_from_eps(latents, eps, t)
    shape = (-1, *[1] * (latents.ndim - 1))
    c_skip, c_out = (
        scale.to(x0.dtype).reshape(shape)
        for scale in boundary_scalings(t, timestep_scaling, sigma_data)
    )
    return c_skip * latents + c_out * x0


def few_step_timesteps(
    steps: int, count: int = TRAJECTORY_STEPS, train: int = TRAIN_TIMESTEPS
) -> Tensor:
    """Descending timesteps (steps,) int64 at which LCM sampling in ``steps`` steps calls the model.

    They are `LCMScheduler.set_timesteps`'s own choice among the ``count`` trajectory timesteps.

    Raises:
        ValueError: ``steps`` is not within 1 .. ``count``.
    """
    check_steps(steps, count)
    scheduler: Any = LCMScheduler(num_train_timesteps=train, original_inference_steps=count)
    scheduler.set_timesteps(steps)
    return torch.as_tensor(scheduler.timesteps, dtype=torch.long)


def check_steps(steps: int, most: int) -> None:
    """Refuse a number of sampling steps outside 1 .. ``most``.

    Raises:
        ValueError: naming the value and the range.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"`steps`={steps!r} is not a number of sampling steps; use 1 to {most}.")
