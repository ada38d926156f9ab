"""Where on a trajectory a step trains: mixed trajectory distillation (paper, sec. 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig
from ..diffusion.solver import ddim_timesteps, previous_timestep
from .draws import FRESH, REPLAY, TRAJECTORY, StepDraws
from .motions import MotionSource, Replay
from .prompts import PromptSet
from .student import Student


@dataclass(frozen=True)
class Points:
    """One batch of trajectory points, everything that needs no gradient already computed.

    ``latents`` (B, C, F, h, w) at ``t_from`` (B,); ``target`` the stop-gradient target
    ``f(z_{t_to})``; ``earlier`` the prediction that a replayed point was made from, with
    ``anchored`` (B,) 1 where it counts; ``rows`` (B,) prompt rows.
    """

    latents: Tensor
    t_from: Tensor
    text: Tensor
    target: Tensor
    earlier: Tensor
    anchored: Tensor
    rows: Tensor


@torch.no_grad()
def trajectory_points(
    student: Student,
    config: TrainConfig,
    draws: StepDraws,
    prompts: PromptSet,
    motions: MotionSource,
    replay: Replay,
) -> Points:
    """Points from real trajectories, new predictions and stored predictions, with their consistency
    targets.
    """
    model = student.model
    device = model.device
    trajectory, stored = draws.source == TRAJECTORY, draws.source == REPLAY
    rows = draws.prompt.clone()
    rows[trajectory] = motions.prompts[draws.motion[trajectory]]
    earlier = torch.zeros_like(draws.noise)
    if stored.any():
        earlier[stored], rows[stored] = replay.take(draws.replay[stored])
    text = model.encode_text(prompts.texts(rows.tolist()))
    t_from = ddim_timesteps(config.trajectory.ddim_timesteps)[draws.level]
    t_to = previous_timestep(t_from, config.trajectory.ddim_timesteps)

    earlier, noise = earlier.to(device), draws.noise.to(device)
    fresh = (draws.source == FRESH).nonzero()[:, 0]
    if len(fresh):
        earlier[fresh] = student.generate(draws.start[fresh].to(device), text[fresh])
    latents = model.schedule.add_noise(earlier, noise, t_from.to(device))
    following = torch.zeros_like(latents)
    known = torch.zeros(len(rows), dtype=torch.bool)
    if trajectory.any():
        real = motions.points(
            draws.motion[trajectory],
            draws.level[trajectory],
            t_from[trajectory].to(device),
            noise[trajectory],
        )
        latents[trajectory] = real.latents
        if real.next is not None:
            following[trajectory] = real.next
            known |= trajectory
    asked = (~known).nonzero()[:, 0]
    if len(asked):
        following[asked] = student.teacher_step(
            latents[asked],
            t_from[asked].to(device),
            t_to[asked].to(device),
            text[asked],
            model.encode_text([""]),
            draws.guidance[asked].to(device),
        )
    limit = config.motion.self_anchor_max_timestep
    anchored = (stored & (t_from <= limit)).float().to(device)
    target = student.target(following, t_to.to(device), text)
    return Points(latents, t_from.to(device), text, target, earlier, anchored, rows)
