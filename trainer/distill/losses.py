"""The student's losses on one prediction: consistency of motion, and the look of single frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..adversarial.augment import apply_augment
from ..adversarial.content import deeper_half
from ..adversarial.features import FeatureNetwork
from ..adversarial.heads import Discriminator
from ..adversarial.losses import frozen, generator_loss
from ..adversarial.reader import ClipReader
from ..adversarial.statistics import shallower_half
from ..adversarial.terms import FrameTerms
from ..diffusion.solver import TRAIN_TIMESTEPS
from ..motion.learned import MotionRepresentation
from ..motion.losses import low_pass_anchor, motion_energy_loss, motion_loss, self_anchor
from ..settings.method import AdversarialConfig, MotionConfig
from .batch import StyleBatch
from .points import Points

ANCHOR_POOL = 2
COMMON_SHARE = 2.0
"""Of the common loss beside the distance of the crowds, in the statistics loss."""


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
    content: Tensor
    statistics: Tensor
    features: tuple[Tensor, ...]


def motion_losses(
    prediction: Tensor, points: Points, representation: MotionRepresentation, config: MotionConfig
) -> MotionLoss:
    """The motion loss (paper, eq. 6) and the terms that keep content, in fp32.

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
    return rearrange(latents.gather(2, index), "b c k h w -> (b k) c h w")


def style_losses(
    prediction: Tensor,
    points: Points,
    batch: StyleBatch,
    decode: Callable[[Tensor], Tensor],
    features: FeatureNetwork,
    discriminator: Discriminator,
    terms: FrameTerms,
    config: AdversarialConfig,
    reader: ClipReader | None = None,
) -> StyleLoss:
    """Adversarial loss of decoded frames (paper, eq. 8), content and statistics loss, and the
    caption loss where ``reader`` or the network itself can read.

    ``prediction`` (B, C, F, h, w) of ``points``, whose target is decoded only where the batch does
    not bring its maps; ``decode`` turns latents (N, C, h, w) into pixels (N, 3, H, W). The
    discriminator is frozen here. A term of weight 0 is not computed.
    """
    pixels = decode(pick_frames(prediction, batch.frames))
    maps = features(apply_augment(pixels, batch.augment_fake))
    with frozen(discriminator):
        adversarial = generator_loss(discriminator(maps, batch.text), config.loss)
    caption, content, statistics = (prediction.new_zeros(()) for _ in range(3))
    plain = features(pixels) if config.content_weight or config.statistics_weight else []
    if config.content_weight:
        wanted = batch.wanted
        if wanted is None:
            wanted = _deeper_maps(points.target, batch, decode, features)
        content = terms.content(deeper_half(plain), wanted).mean()
    if config.statistics_weight:
        with torch.no_grad():
            real = shallower_half(features(batch.pixels))
        statistics = _statistics(shallower_half(plain), real, points, batch, terms)
    if config.caption_weight:
        if reader is not None and batch.read is not None:
            scores: Tensor | None = reader(pixels, batch.read)
        else:
            scores = features.score_captions(pixels, batch.captions)
        caption = caption if scores is None else scores.mean()
    total = adversarial + config.caption_weight * caption
    total = total + config.content_weight * content + config.statistics_weight * statistics
    seen = tuple(m.detach() for m in maps)
    return StyleLoss(total, adversarial, caption, content, statistics, seen)


def _statistics(
    ours: list[Tensor], real: list[Tensor], points: Points, batch: StyleBatch, terms: FrameTerms
) -> Tensor:
    """Distance of the crowds and, with its share, of what all their frames have in common."""
    level = (points.t_from / TRAIN_TIMESTEPS).repeat_interleave(batch.frames.shape[1])
    crowds = terms.statistics(ours, real, batch.text, batch.real_text)
    return crowds + COMMON_SHARE * terms.common(ours, real, level)


@torch.no_grad()
def _deeper_maps(
    target: Tensor, batch: StyleBatch, decode: Callable[[Tensor], Tensor], features: FeatureNetwork
) -> list[Tensor]:
    return deeper_half(features(decode(pick_frames(target, batch.frames))))


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
