"""The deterministic DDIM solver (eta = 0; arXiv 2010.02502, eq. 12) on the LCM timesteps.

The trajectory of LCM (arXiv 2310.04378, section 4.3; diffusers' LCM distillation scripts) has the
timesteps ``19, 39, ..., 999``: the last training timestep is included, as in "trailing" spacing.
The step below 19 ends at timestep **0**, whose noise level is ``alphas_cumprod[0]`` and where the
consistency function is the identity. Timestep **-1** is diffusers' name for the end of a DDIM
sampling run: its level is `NoiseSchedule.final_alpha_cumprod`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import NoiseSchedule

TRAJECTORY_STEPS = 50
TRAIN_TIMESTEPS = 1000


def ddim_timesteps(count: int = TRAJECTORY_STEPS, train: int = TRAIN_TIMESTEPS) -> Tensor:
    """Ascending timesteps ``k - 1, 2k - 1, ...`` (count,) int64 with ``k = train // count``.

    Raises:
        ValueError: ``count`` is not within 1 .. ``train``.
    """
    return torch.arange(1, count + 1) * _stride(count, train) - 1


def previous_timestep(
    t: Tensor, count: int = TRAJECTORY_STEPS, train: int = TRAIN_TIMESTEPS
) -> Tensor:
    """The trajectory's next timestep towards the data, same shape as ``t``; 0 after the lowest one.

    Raises:
        ValueError: ``count`` is not within 1 .. ``train``.
    """
    return (t - _stride(count, train)).clamp(min=0)


def ddim_step(x0: Tensor, eps: Tensor, t_to: Tensor, schedule: NoiseSchedule) -> Tensor:
    """One DDIM step: ``z_to = alpha_to x0 + sigma_to eps``, all (B, C, F, h, w).

    ``x0`` and ``eps`` are the teacher's two readings of one latent (`NoiseSchedule.x0_from_eps`),
    so the timestep it came from is already in them. ``t_to`` (B,) is the timestep to reach; 0 gives
    the level ``alphas_cumprod[0]``, -1 gives ``schedule.final_alpha_cumprod``.
    """
    return schedule.add_noise(x0, eps, t_to)


def guided_eps(eps_cond: Tensor, eps_uncond: Tensor, w: float | Tensor) -> Tensor:
    """Guidance as LCM writes it: ``eps_c + w (eps_c - eps_u)``, (B, C, F, h, w).

    ``w`` is a number or a tensor (B,). It equals a usual CFG scale of ``w + 1``; 0 means no
    guidance.
    """
    if isinstance(w, Tensor):
        w = w.to(eps_cond.dtype).reshape(-1, *[1] * (eps_cond.ndim - 1))
    return eps_cond + w * (eps_cond - eps_uncond)


def _stride(count: int, train: int) -> int:
    if not 1 <= count <= train:
        raise ValueError(f"`count`={count} trajectory timesteps; use 1 to {train}.")
    return train // count
