"""Where on a trajectory a step trains: mixed trajectory distillation (paper, sec. 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .student import Student


@dataclass(frozen=True)
class Points:
    """One batch of trajectory points, everything that needs no gradient already computed.

    ``latents`` (B, C, F, h, w) at ``t_from`` (B,); ``target`` (B, C, F, h, w) the end of the
    teacher's trajectory, or the stop-gradient target ``f(z_{t_to})``; ``earlier`` the prediction
    that a replayed point was made from, with ``anchored`` (B,) 1 where it counts.
    """

    latents: Tensor
    t_from: Tensor
    text: Tensor
    target: Tensor
    earlier: Tensor
    anchored: Tensor


@torch.no_grad()
def trajectory_points(student: Student, batch: Batch) -> Points:
    """Points from real trajectories, new predictions and stored predictions, with what their motion
    is compared with.
    """
    earlier = batch.earlier
    if batch.own is not None:
        text = batch.text.index_select(0, batch.own.places)
        made = student.generate(batch.own.start, text)
        earlier = earlier.index_copy(0, batch.own.places, made)
    latents = student.model.schedule.add_noise(earlier, batch.noise, batch.t_from)
    if batch.real is not None:
        latents = latents.index_copy(0, batch.real.places, batch.real.latents)
    target = _consistency_target(student, batch, latents) if batch.ends is None else batch.ends
    return Points(latents, batch.t_from, batch.text, target, earlier, batch.anchored)


def _consistency_target(student: Student, batch: Batch, latents: Tensor) -> Tensor:
    """``f(z_{t_to})`` of the student (paper, eq. 3), one teacher step on from ``latents``."""
    following = torch.zeros_like(latents)
    if batch.real is not None and batch.real.next is not None:
        following = following.index_copy(0, batch.real.places, batch.real.next)
    if batch.asked is not None:
        stepped = student.teacher_step(
            latents.index_select(0, batch.asked),
            batch.t_from.index_select(0, batch.asked),
            batch.t_to.index_select(0, batch.asked),
            batch.text.index_select(0, batch.asked),
            batch.empty,
            batch.guidance.index_select(0, batch.asked),
        )
        following = following.index_copy(0, batch.asked, stepped)
    return student.target(following, batch.t_to, batch.text)
