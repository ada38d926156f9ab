"""The device's half of a step: gradients of one micro-batch, from tensors to tensors.

Nothing here asks the device for a value: no ``.item()``, no copy between host and device, no shape
that depends on data. The host may run ahead, and the same code runs on shapes alone (`estimate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adversarial.augment import apply_augment
from ..adversarial.losses import DiscriminatorLoss, discriminator_loss
from .batch import Batch, StyleBatch
from .losses import MotionLoss, StyleLoss, latent_gradient, motion_losses, style_losses
from .points import Points, trajectory_points
from .precision import gradient_scale
from .session import Session

STYLE_TERMS = ("adversarial", "caption", "content", "statistics")


@dataclass(frozen=True)
class Outcome:
    """Scalars to log by name, and the student's ``prediction`` (B, C, F, h, w), all detached and on
    the device; ``rows`` (B,) of prompts and ``origins`` (B,) in the motion source.
    """

    logs: dict[str, Tensor]
    prediction: Tensor
    rows: Tensor
    origins: Tensor


def gradients(session: Session, batch: Batch, share: float) -> Outcome:
    """Add ``share`` of this batch's gradients to those of student, motion head and
    discriminator.
    """
    s = session
    points = trajectory_points(s.student, batch)
    prediction = s.student.predict(points.latents, points.t_from, points.text)
    motion = motion_losses(prediction, points, s.representation, s.config.recipe.motion)
    style = None if batch.style is None else _style(s, prediction, points, batch.style)
    logs = _motion_logs(s, motion, points)
    if style is not None:
        logs |= {name: getattr(style, name) for name in STYLE_TERMS}
    features = () if style is None else style.features
    alpha, sigma = s.model.schedule.alpha_sigma(points.t_from, prediction.ndim)
    counts = (alpha / sigma) ** s.config.recipe.trajectory.snr_power
    weight = _backward(s, prediction, motion, style, share, counts)
    if batch.style is not None:
        logs |= {"style_weight": weight} | _judge_logs(judge(s, batch.style, features, share))
    detached = {name: value.detach().float() for name, value in logs.items()}
    return Outcome(detached, prediction.detach(), batch.rows, batch.origins)


def _style(s: Session, prediction: Tensor, points: Points, batch: StyleBatch) -> StyleLoss:
    assert s.features is not None and s.discriminator is not None
    return style_losses(
        prediction,
        points,
        batch,
        s.decoder,
        s.features,
        s.discriminator,
        s.terms,
        s.config.recipe.adversarial,
        s.reader,
    )


def _motion_logs(s: Session, motion: MotionLoss, points: Points) -> dict[str, Tensor]:
    return {
        "loss": motion.total,
        "consistency": motion.consistency,
        "energy": motion.energy,
        "self_anchor": motion.self_anchor,
        "motion_variance": s.representation.target_variance(points.target),
    }


def _judge_logs(loss: DiscriminatorLoss) -> dict[str, Tensor]:
    return {
        "discriminator": loss.total,
        "real_logits": loss.real_logits_mean,
        "fake_logits": loss.fake_logits_mean,
        "r1": loss.r1,
    }


def _backward(
    s: Session,
    prediction: Tensor,
    motion: MotionLoss,
    style: StyleLoss | None,
    share: float,
    counts: Tensor,
) -> Tensor:
    """Weigh both gradients at the prediction, then one pass through the UNet.

    ``counts`` (B, 1, 1, 1, 1) say how much each clip moves the UNet. Returns the style weight.
    """
    head = s.representation.parameters()
    by_motion, by_style, by_head = latent_gradient(
        prediction, motion.total, None if style is None else style.total, head
    )
    weight = by_motion.new_full((), s.config.recipe.adversarial.weight)
    gradient = by_motion
    if by_style is not None:
        if s.config.recipe.adversarial.weight_mode == "gradient_ratio":
            weight = s.ratio.update(by_motion, by_style) * s.config.recipe.adversarial.weight
        gradient = by_motion + weight * by_style
    _through_the_unet(s, prediction, gradient * counts * share)
    for parameter, value in zip(head, by_head, strict=True):
        _add_gradient(parameter, value * share)
    return weight


def _through_the_unet(s: Session, prediction: Tensor, gradient: Tensor) -> None:
    """Backward of the student; in fp16 scaled into its range and back."""
    scale = gradient_scale(gradient, s.model.dtype)
    if scale is None:
        prediction.backward(gradient)
        return
    found = torch.autograd.grad(prediction, s.parameters, gradient * scale, allow_unused=True)
    for parameter, value in zip(s.parameters, found, strict=True):
        if value is not None:
            _add_gradient(parameter, value / scale)


def _add_gradient(parameter: Tensor, value: Tensor) -> None:
    parameter.grad = value if parameter.grad is None else parameter.grad + value


def judge(
    s: Session, batch: StyleBatch, fake: tuple[Tensor, ...], share: float
) -> DiscriminatorLoss:
    """Gradients of the discriminator on real frames, their mismatched captions, and the student's
    frames, whose features ``fake`` the student's own loss has computed.
    """
    assert s.features is not None and s.discriminator is not None
    with torch.no_grad():
        real = s.features(apply_augment(batch.pixels, batch.augment_real))
    loss = discriminator_loss(
        s.discriminator,
        real,
        batch.real_text,
        fake,
        batch.text,
        kind=s.config.recipe.adversarial.loss,
        mismatched_text=batch.wrong_text,
        mismatched_mask=batch.mask,
        r1_weight=batch.r1_weight,
    )
    (loss.total * share).backward()
    return loss
