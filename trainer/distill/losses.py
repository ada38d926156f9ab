"""The student's losses on one prediction: consistency of motion, and the look of single frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adversarial.augment import AugmentDraws, apply_augment
from ..adversarial.features import FeatureNetwork
from ..adversarial.heads import Discriminator
from ..adversarial.losses import frozen, generator_loss
from ..motion.learned import MotionRepresentation
from ..motion.losses import low_pass_anchor, motion_energy_loss, motion_loss, self_anchor
from ..settings.method import MotionConfig
from .points import Points

ANCHOR_POOL = 2


@dataclass(frozen=True)
class MotionLoss:
    """Scalars; ``total`` is the weighted sum that is differentiated."""

    total: Tensor
    consistency: Tensor
    energy: Tensor
    anchor: Tensor
    self_anchor: Tensor


@dataclass(frozen=True)
class StyleLoss:
    """Scalars of the adversarial side, and the frames' features (detached) for the discriminator's
    own step.
    """

    total: Tensor
    adversarial: Tensor
    caption: Tensor
    features: tuple[Tensor, ...]


def motion_losses(
    prediction: Tensor, points: Points, representation: MotionRepresentation, config: MotionConfig
) -> MotionLoss:
    """Disentangled consistency (paper, eq. 6) and the terms that keep content, in fp32.

    ``prediction`` (B, C, F, h, w) is ``f(z_t)`` of the student with gradients. A term of weight 0
    is not computed.
    """
    zero = prediction.new_zeros(())
    consistency = motion_loss(
        config.loss,
        representation.student(prediction),
        representation.target(points.target),
        config.huber_c,
    ).mean()
    energy, anchor, own = zero, zero, zero
    if config.energy_weight:
        energy = motion_energy_loss(prediction, points.target).mean()
    if config.anchor_weight:
        anchor = low_pass_anchor(prediction, points.target, ANCHOR_POOL, config.huber_c).mean()
    if config.self_anchor_weight:
        each = self_anchor(prediction, points.earlier, ANCHOR_POOL, config.huber_c)
        own = (each * points.anchored).mean()
    total = (
        config.weight * consistency
        + config.energy_weight * energy
        + config.anchor_weight * anchor
        + config.self_anchor_weight * own
    )
    return MotionLoss(total, consistency, energy, anchor, own)


def pick_frames(latents: Tensor, frames: Tensor) -> Tensor:
    """Frames ``frames`` (B, K) of ``latents`` (B, C, F, h, w) as (B * K, C, h, w), clip by clip."""
    index = frames[:, None, :, None, None]
    index = index.expand(-1, latents.shape[1], -1, *latents.shape[3:])
    return latents.gather(2, index).transpose(1, 2).flatten(0, 1)


def style_losses(
    prediction: Tensor,
    frames: Tensor,
    draws: AugmentDraws,
    decode: Callable[[Tensor], Tensor],
    features: FeatureNetwork,
    discriminator: Discriminator,
    text: Tensor,
    captions: Sequence[str] | None,
    kind: str,
    caption_weight: float,
) -> StyleLoss:
    """Adversarial loss of decoded frames (paper, eq. 8), plus the caption loss where the network
    can read.

    ``frames`` (B, K); ``decode`` turns latents (N, C, h, w) into pixels (N, 3, H, W); ``text``
    (B * K, D) and ``captions`` are those of the frames. The discriminator is frozen here.
    """
    pixels = decode(pick_frames(prediction, frames))
    maps = features(apply_augment(pixels, draws))
    with frozen(discriminator):
        adversarial = generator_loss(discriminator(maps, text), kind)
    caption = prediction.new_zeros(())
    if caption_weight and captions is not None:
        scores = features.score_captions(pixels, captions)
        caption = caption if scores is None else scores.mean()
    total = adversarial + caption_weight * caption
    return StyleLoss(total, adversarial, caption, tuple(m.detach() for m in maps))


def latent_gradient(
    prediction: Tensor, motion: Tensor, style: Tensor | None, head: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Gradients of both losses by ``prediction``, and of the motion loss by the learned head's
    parameters.

    Taken apart, they can be weighed against each other before one backward pass through the UNet,
    and the graphs of decoder and feature network are freed before it.
    """
    by_motion, *by_head = torch.autograd.grad(motion, [prediction, *head], allow_unused=True)
    by_motion = torch.zeros_like(prediction) if by_motion is None else by_motion
    by_head = [torch.zeros_like(p) if g is None else g for p, g in zip(head, by_head, strict=True)]
    by_style = None if style is None else torch.autograd.grad(style, prediction)[0]
    return by_motion, by_style, by_head
