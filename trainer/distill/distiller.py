"""One training step on a :class:`Session`: points, student, discriminator, in that order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adversarial.augment import apply_augment
from ..adversarial.losses import DiscriminatorLoss, discriminator_loss, mismatch_permutation
from ..lora.adapter import load_lora_state, lora_state
from ..lora.pairs import LoraPair
from ..runs.guards import NanGuard
from .draws import Sizes, StepDraws, draw_step, generator_for
from .losses import MotionLoss, StyleLoss, latent_gradient, motion_losses, style_losses
from .points import Points, trajectory_points
from .session import Session


@dataclass(frozen=True)
class StepReport:
    """What a step tells the event log.

    Plain numbers by name, and whether its optimizer step was taken.
    """

    values: dict[str, float]
    taken: bool


class Distiller:
    """Repeats the training step and holds what a checkpoint needs."""

    def __init__(self, session: Session, guard: NanGuard):
        self.session = session
        self.guard = guard

    def step(self, step: int) -> StepReport:
        """Optimizer step ``step`` (from 0).

        Gradients of all its micro-batches, the NaN check, both updates.
        """
        s = self.session
        self._set_learning_rates(step)
        for optimizer in (s.optimizer, s.discriminator_optimizer):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        logs: list[dict[str, Tensor]] = []
        count = s.config.optim.accumulation
        for micro in range(count):
            draws = draw_step(
                s.config, self._sizes(), step * count + micro, s.accelerator.process_index
            )
            logs.append(self._micro_step(draws, step, 1 / count))
        return self._update(_mean(logs))

    def _sizes(self) -> Sizes:
        s = self.session
        return Sizes(s.latent_shape, len(s.prompts), len(s.motions), len(s.replay))

    def _micro_step(self, draws: StepDraws, step: int, share: float) -> dict[str, Tensor]:
        s = self.session
        with s.accelerator.autocast():
            points = trajectory_points(s.student, s.config, draws, s.prompts, s.motions, s.replay)
            prediction = s.student.predict(points.latents, points.t_from, points.text)
        motion = motion_losses(prediction, points, s.representation, s.config.motion)
        text, captions = self._frame_text(points)
        style = self._style(prediction, draws, text, captions)
        weight = self._backward(prediction, motion, style, share)
        logs = {
            "loss": motion.total,
            "consistency": motion.consistency,
            "energy": motion.energy,
            "self_anchor": motion.self_anchor,
            "motion_variance": s.representation.target_variance(points.target),
        }
        if style is not None:
            disc = self._discriminator(draws, style, text, step, share)
            logs |= {
                "adversarial": style.adversarial,
                "caption": style.caption,
                "style_weight": weight,
            }
            logs |= {
                "discriminator": disc.total,
                "real_logits": disc.real_logits_mean,
                "fake_logits": disc.fake_logits_mean,
                "r1": disc.r1,
            }
        s.replay.add(prediction.detach(), points.rows)
        return {name: value.detach().float() for name, value in logs.items()}

    def _frame_text(self, points: Points) -> tuple[Tensor, list[str]]:
        """Text vectors (B * K, D) and captions of the decoded frames.

        One text for all when unconditional.
        """
        s = self.session
        captions = s.prompts.frames(points.rows.tolist())
        captions = [c for c in captions for _ in range(s.config.data.frames_per_clip)]
        return s.model.pooled_text(
            captions if s.prompts.conditional else [""] * len(captions)
        ), captions

    def _style(
        self, prediction: Tensor, draws: StepDraws, text: Tensor, captions: list[str]
    ) -> StyleLoss | None:
        s = self.session
        if s.features is None or s.discriminator is None:
            return None
        return style_losses(
            prediction,
            draws.frames,
            draws.augment_fake,
            s.model,
            s.features,
            s.discriminator,
            text,
            captions,
            s.config.adversarial.loss,
            s.config.adversarial.caption_weight,
        )

    def _backward(
        self, prediction: Tensor, motion: MotionLoss, style: StyleLoss | None, share: float
    ) -> Tensor:
        """Weigh both gradients at the prediction, then one pass through the UNet.

        Returns the style weight.
        """
        s = self.session
        head = s.representation.parameters()
        by_motion, by_style, by_head = latent_gradient(
            prediction, motion.total, None if style is None else style.total, head
        )
        weight = prediction.new_tensor(s.config.adversarial.weight)
        gradient = by_motion
        if by_style is not None:
            if s.config.adversarial.weight_mode == "gradient_ratio":
                weight = weight * s.ratio.update(by_motion, by_style).to(prediction)
            gradient = by_motion + weight * by_style
        prediction.backward(gradient * share)
        for parameter, value in zip(head, by_head, strict=True):
            parameter.grad = (
                value * share if parameter.grad is None else parameter.grad + value * share
            )
        return weight

    def _discriminator(
        self, draws: StepDraws, style: StyleLoss, text: Tensor, step: int, share: float
    ) -> DiscriminatorLoss:
        """Gradients of the discriminator on real frames, their mismatched captions, and the
        student's frames.
        """
        s = self.session
        assert s.features is not None and s.discriminator is not None
        options = s.config.adversarial
        pixels, captions = s.frames.batch(len(text), draws.image_seed)
        with torch.no_grad(), s.accelerator.autocast():
            real = s.features(apply_augment(pixels.to(text.device), draws.augment_real))
        wrong = mask = None
        if s.prompts.conditional:
            real_text = s.model.pooled_text(captions)
            if options.mismatched_captions:
                pairing = mismatch_permutation(captions, generator_for(draws.mismatch_seed, step))
                wrong, mask = real_text[pairing.permutation.to(text.device)], pairing.possible
        else:
            real_text = text
        loss = discriminator_loss(
            s.discriminator,
            real,
            real_text,
            style.features,
            text,
            kind=options.loss,
            mismatched_text=wrong,
            mismatched_mask=mask,
            r1_weight=options.r1_weight if step % options.r1_every == 0 else 0.0,
        )
        (loss.total * share).backward()
        return loss

    def _update(self, logs: dict[str, Tensor]) -> StepReport:
        """Average over processes, check for NaN, clip, and take both optimizer steps or neither."""
        s = self.session
        trained = [p for group in s.optimizer.param_groups for p in group["params"]]
        judged = [] if s.discriminator is None else list(s.discriminator.parameters())
        self._synchronise(trained + judged)
        norm = nn.utils.clip_grad_norm_(trained, s.config.optim.grad_clip)
        values = {name: float(value) for name, value in logs.items()} | {"grad_norm": float(norm)}
        check = sum(values[k] for k in ("loss", "adversarial", "discriminator") if k in values)
        taken = self.guard.check(check, norm)
        if taken:
            s.optimizer.step()
            if s.discriminator_optimizer is not None:
                nn.utils.clip_grad_norm_(judged, 10 * s.config.optim.grad_clip)
                s.discriminator_optimizer.step()
            s.representation.update_ema()
            s.ema.update()
        return StepReport(values | {"lr": s.optimizer.param_groups[0]["lr"]}, taken)

    def _synchronise(self, parameters: list[nn.Parameter]) -> None:
        """Mean of the gradients over all processes, in one message.

        Nothing to do with a single one.
        """
        accelerator = self.session.accelerator
        if accelerator.num_processes == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = accelerator.reduce(torch.cat([g.flatten() for g in grads]), reduction="mean")
        start = 0
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = flat[start : start + grad.numel()].view_as(grad).clone()
            start += grad.numel()

    def _set_learning_rates(self, step: int) -> None:
        s, optim = self.session, self.session.config.optim
        factor = min(1.0, (step + 1) / max(optim.warmup_steps, 1))
        if optim.schedule == "cosine":
            done = torch.tensor(min(step / max(s.config.steps, 1), 1.0) * torch.pi)
            factor *= float(0.5 * (1 + done.cos()))
        for group, base in zip(
            s.optimizer.param_groups, (optim.lr, s.config.motion.head_lr), strict=False
        ):
            group["lr"] = base * factor

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every trained tensor by group, for a checkpoint."""
        s = self.session
        groups: dict[str, Any] = {
            "lora": _flatten(lora_state(s.model.unet)),
            "ema": s.ema.state_dict(),
        }
        groups["replay"] = s.replay.state_dict()
        groups["motion_head"] = s.representation.state_dict()
        if s.discriminator is not None:
            groups["discriminator"] = s.discriminator.state_dict()
        if s.ratio.state_dict()["norms"] is not None:
            groups["ratio"] = s.ratio.state_dict()
        return {name: group for name, group in groups.items() if group}

    def optimizer_states(self) -> dict[str, Any]:
        s = self.session
        pairs = {"optimizer": s.optimizer, "discriminator_optimizer": s.discriminator_optimizer}
        return {name: o.state_dict() for name, o in pairs.items() if o is not None}

    def load(self, tensors: dict[str, dict[str, Tensor]], optimizers: dict[str, Any]) -> None:
        """Restore what `tensors` and `optimizer_states` gave.

        ValueError where they do not fit this run.
        """
        s = self.session
        load_lora_state(s.model.unet, _unflatten(tensors["lora"], s.config.lora.alpha))
        s.ema.load_state_dict(tensors["ema"])
        s.replay.load_state_dict(tensors["replay"])
        s.representation.load_state_dict(tensors.get("motion_head", {}))
        if s.discriminator is not None and s.discriminator_optimizer is not None:
            s.discriminator.load_state_dict(tensors["discriminator"])
            s.discriminator_optimizer.load_state_dict(optimizers["discriminator_optimizer"])
        s.ratio.load_state_dict(dict(tensors["ratio"]) if "ratio" in tensors else {"norms": None})
        s.optimizer.load_state_dict(optimizers["optimizer"])


def _mean(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}


def _flatten(pairs: dict[str, LoraPair]) -> dict[str, Tensor]:
    return {
        f"{path}.{side}": getattr(p, side) for path, p in pairs.items() for side in ("up", "down")
    }


def _unflatten(tensors: dict[str, Tensor], alpha: float) -> dict[str, LoraPair]:
    paths = sorted({name.rpartition(".")[0] for name in tensors})
    return {
        path: LoraPair(down=tensors[f"{path}.down"], up=tensors[f"{path}.up"], alpha=alpha)
        for path in paths
    }
