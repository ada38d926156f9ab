"""The device part of a step, from a batch to gradients.

1. Points of trajectories, and the clips their motion is compared with (paper, sec. 3.3 and eq. 3).
2. The student's prediction.
3. The losses: of motion (eq. 6), of the look of single frames (eq. 8), and of their content.
4. Both gradients at the prediction, weighed against each other, and one pass back.
5. The discriminator's own loss.

Nothing here reads a value from the device: no ``.item()``, no copy between host and device, no
shape that depends on data. The host may run ahead, and the same code runs on shapes alone
(`estimate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adversarial.augment import apply_augment
from ..adversarial.frame_losses import LossMemory, deeper_half, shallower_half
from ..adversarial.losses import discriminator_loss, frozen, generator_loss
from ..motion.losses import low_pass_anchor, motion_energy_loss, motion_loss, self_anchor
from ..motion.representations import of_one_kind
from .batch import Batch, StyleBatch
from .student import StepParts, Student, gradient_scale

ANCHOR_POOL = 2
COMMON_SHARE = 2.0
"""Share of the shared-average loss in the statistics loss."""


@dataclass(frozen=True)
class Points:
    """The points where the student predicts: ``latents`` (B, C, f, h, w) at the batch's levels;
    ``target`` of that shape, the prediction that leads to the end of the teacher's trajectory or to
    ``stopgrad f(z)`` one step on; ``earlier`` what a replayed point was made from.
    """

    latents: Tensor
    target: Tensor
    earlier: Tensor


@dataclass(frozen=True)
class Outcome:
    """Scalars to log by name, what the student's ``prediction`` (B, C, f, h, w) leads to, both
    detached and on the device, and what the losses remember now.
    """

    logs: dict[str, Tensor]
    prediction: Tensor
    memory: LossMemory


def gradients(parts: StepParts, batch: Batch, memory: LossMemory, share: float) -> Outcome:
    """Add ``share`` of this batch's gradients to those of student, motion head and discriminator.

    ``memory`` is not changed.
    """
    memory = memory.copy()
    points = trajectory_points(parts.student, batch)
    prediction = parts.student.predict(points.latents, batch.level, batch.text)
    logs = motion_losses(parts, prediction, points, batch)
    by_style: Tensor | None = None
    seen: tuple[Tensor, ...] = ()
    if batch.style is not None:
        style, seen = style_losses(parts, prediction, points, batch, memory)
        by_style = style.pop("style")
        logs |= style
    weight = _backward(parts, prediction, batch, (logs["loss"], by_style), memory, share)
    if batch.style is not None:
        logs |= {"style_weight": weight}
        logs |= discriminator_losses(parts, batch.style, seen, share)
    detached = {name: value.detach().float() for name, value in logs.items()}
    made = parts.model.noise.landing(points.latents, prediction.detach(), batch.level)
    return Outcome(detached, made, memory)


@torch.no_grad()
def trajectory_points(student: Student, batch: Batch) -> Points:
    """Points from real trajectories, new predictions and stored ones, with what their motion is
    compared with: mixed trajectory distillation (paper, sec. 3.3).
    """
    earlier = batch.earlier
    if batch.fresh is not None and batch.start is not None:
        text = batch.text.index_select(0, batch.fresh)
        made = student.generate(batch.start, batch.most.expand(len(text)), text)
        earlier = earlier.index_copy(0, batch.fresh, made)
    path = student.model.noise
    latents = path.renoise(earlier, batch.noise, batch.level)
    if batch.real is not None and batch.real_latents is not None:
        latents = latents.index_copy(0, batch.real, batch.real_latents)
    target = _consistency_target(student, batch, latents) if batch.ends is None else batch.ends
    return Points(latents, path.aim(latents, target, batch.level), earlier)


def _consistency_target(student: Student, batch: Batch, latents: Tensor) -> Tensor:
    """What ``f`` of the student (paper, eq. 3) leads to, one teacher step on from ``latents``."""
    following = torch.zeros_like(latents)
    if batch.real is not None and batch.real_next is not None:
        following = following.index_copy(0, batch.real, batch.real_next)
    if batch.asked is not None:
        stepped = student.teacher_step(
            latents.index_select(0, batch.asked),
            batch.level.index_select(0, batch.asked),
            batch.next_level.index_select(0, batch.asked),
            batch.text.index_select(0, batch.asked),
            batch.empty,
            batch.guidance.index_select(0, batch.asked),
        )
        following = following.index_copy(0, batch.asked, stepped)
    found = student.target(following, batch.next_level, batch.text)
    return student.model.noise.landing(following, found, batch.next_level)


def motion_losses(
    parts: StepParts, prediction: Tensor, points: Points, batch: Batch
) -> dict[str, Tensor]:
    """The motion loss (paper, eq. 6) and the terms that keep content, in fp32; "loss" is their
    weighted sum. A term of weight 0 is not computed.
    """
    config, head = parts.config.recipe.motion, parts.representation
    ours, wanted = head.student(prediction), head.target(points.target)
    consistency = motion_loss(config.loss, ours, wanted, config.huber_c).mean()
    energy, anchor, own = (prediction.new_zeros(()) for _ in range(3))
    lead = parts.model.codec.lead
    if config.energy_weight and prediction.shape[2] > lead + 1:
        moving = (of_one_kind(clip, lead) for clip in (prediction, points.target))
        energy = motion_energy_loss(*moving).mean()
    if config.anchor_weight:
        anchor = low_pass_anchor(prediction, points.target, ANCHOR_POOL, config.huber_c).mean()
    if config.self_anchor_weight:
        each = self_anchor(prediction, points.earlier, ANCHOR_POOL, config.huber_c)
        own = (each * batch.anchored).mean()
    total = (
        config.weight * consistency
        + config.energy_weight * energy
        + config.anchor_weight * anchor
        + config.self_anchor_weight * own
    )
    return {
        "loss": total,
        "consistency": consistency,
        "energy": energy,
        "self_anchor": own,
        "motion_variance": head.target_variance(points.target),
    }


def style_losses(
    parts: StepParts, prediction: Tensor, points: Points, batch: Batch, memory: LossMemory
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Adversarial loss of decoded frames (paper, eq. 8), content, statistics and caption loss;
    "style" is their weighted sum. Then the frames' feature maps for the discriminator's own loss.

    The target is decoded only where the batch does not bring its maps. The discriminator is frozen
    here, and ``memory`` is brought up to date. A term of weight 0 is not computed.
    """
    config, style = parts.config.recipe.adversarial, batch.style
    features, discriminator = parts.features, parts.discriminator
    assert style is not None and features is not None and discriminator is not None
    pixels = parts.decoder.decode_frames(prediction, style.frames, style.place)
    maps = features(apply_augment(pixels, style.augment_fake))
    with frozen(discriminator):
        adversarial = generator_loss(discriminator(maps, style.text), config.loss)
    caption, content, statistics = (prediction.new_zeros(()) for _ in range(3))
    plain = features(pixels) if config.content_weight or config.statistics_weight else []
    if config.content_weight:
        wanted = style.wanted
        if wanted is None:
            wanted = _deeper_maps(parts, points.target, style)
        content = memory.content(deeper_half(plain), wanted).mean()
    if config.statistics_weight:
        statistics = _statistics(parts, shallower_half(plain), batch, style, memory)
    if config.caption_weight:
        caption = _caption(parts, pixels, style, caption)
    total = adversarial + config.caption_weight * caption
    total = total + config.content_weight * content + config.statistics_weight * statistics
    losses = {"style": total, "adversarial": adversarial, "caption": caption}
    losses |= {"content": content, "statistics": statistics}
    return losses, tuple(m.detach() for m in maps)


def _caption(parts: StepParts, pixels: Tensor, style: StyleBatch, none: Tensor) -> Tensor:
    if parts.reader is not None and style.read is not None:
        return parts.reader(pixels, style.read).mean()
    assert parts.features is not None
    scores = parts.features.score_captions(pixels, style.captions)
    return none if scores is None else scores.mean()


def _statistics(
    parts: StepParts, ours: list[Tensor], batch: Batch, style: StyleBatch, memory: LossMemory
) -> Tensor:
    """Distance of the distributions and, with its share, of the shared averages."""
    assert parts.features is not None
    with torch.no_grad():
        real = shallower_half(parts.features(style.pixels))
    share = parts.model.noise.share(batch.level).repeat_interleave(style.frames.shape[1])
    crowds = memory.statistics(ours, real, style.text, style.real_text)
    return crowds + COMMON_SHARE * memory.common(ours, real, share)


@torch.no_grad()
def _deeper_maps(parts: StepParts, target: Tensor, style: StyleBatch) -> list[Tensor]:
    assert parts.features is not None
    pixels = parts.decoder.decode_frames(target, style.frames, style.place)
    return deeper_half(parts.features(pixels))


def _backward(
    parts: StepParts,
    prediction: Tensor,
    batch: Batch,
    losses: tuple[Tensor, Tensor | None],
    memory: LossMemory,
    share: float,
) -> Tensor:
    """Gradients of motion and style by the prediction, and one pass back through the network.

    Taken apart, they can be weighed against each other first, and the graphs of decoder and
    feature network are freed before the pass. Returns the weight of style.
    """
    head, config = parts.representation.parameters(), parts.config.recipe.adversarial
    motion, style = losses
    by_motion, *by_head = torch.autograd.grad(motion, [prediction, *head], allow_unused=True)
    by_motion = torch.zeros_like(prediction) if by_motion is None else by_motion
    weight, gradient = by_motion.new_full((), config.weight), by_motion
    if style is not None:
        by_style = torch.autograd.grad(style, prediction)[0]
        if config.weight_mode == "gradient_ratio":
            weight = memory.ratio.update(by_motion, by_style) * config.weight
        gradient = by_motion + weight * by_style
    steady = parts.model.noise.steadiness(batch.level, prediction.ndim)
    counts = steady**parts.config.recipe.trajectory.snr_power
    _through_the_network(parts, prediction, gradient * counts * share)
    for parameter, value in zip(head, by_head, strict=True):
        _add_gradient(parameter, torch.zeros_like(parameter) if value is None else value * share)
    return weight


def _through_the_network(parts: StepParts, prediction: Tensor, gradient: Tensor) -> None:
    """Backward of the student; in fp16 scaled into its range and back."""
    scale = gradient_scale(gradient, parts.model.dtype)
    if scale is None:
        prediction.backward(gradient)
        return
    parameters = parts.parameters
    found = torch.autograd.grad(prediction, parameters, gradient * scale, allow_unused=True)
    for parameter, value in zip(parameters, found, strict=True):
        if value is not None:
            _add_gradient(parameter, value / scale)


def _add_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.grad = value if parameter.grad is None else parameter.grad + value


def discriminator_losses(
    parts: StepParts, style: StyleBatch, fake: tuple[Tensor, ...], share: float
) -> dict[str, Tensor]:
    """Gradients of the discriminator on real frames, their mismatched captions, and the student's
    frames, whose feature maps ``fake`` the student's own loss has computed.
    """
    assert parts.features is not None and parts.discriminator is not None
    with torch.no_grad():
        real = parts.features(apply_augment(style.pixels, style.augment_real))
    loss = discriminator_loss(
        parts.discriminator,
        real,
        style.real_text,
        fake,
        style.text,
        kind=parts.config.recipe.adversarial.loss,
        mismatched_text=style.wrong_text,
        mismatched_mask=style.mask,
        r1_weight=style.r1_weight,
    )
    (loss.total * share).backward()
    return {
        "discriminator": loss.total,
        "real_logits": loss.real_logits_mean,
        "fake_logits": loss.fake_logits_mean,
        "r1": loss.r1,
    }
