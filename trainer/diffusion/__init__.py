"""Diffusion maths on video latents ``(B, C, F, h, w)``: schedule, solver, consistency, samplers."""

from __future__ import annotations

from .consistency import boundary_scalings, consistency_function, few_step_timesteps
from .sampling import SAMPLERS, SamplerStep, sample_ddim, sample_dpmpp, sample_lcm
from .schedule import NoiseSchedule
from .solver import ddim_step, ddim_timesteps, guided_eps, previous_timestep

__all__ = [
    "SAMPLERS",
    "NoiseSchedule",
    "SamplerStep",
    "boundary_scalings",
    "consistency_function",
    "ddim_step",
    "ddim_timesteps",
    "few_step_timesteps",
    "guided_eps",
    "previous_timestep",
    "sample_ddim",
    "sample_dpmpp",
    "sample_lcm",
]
