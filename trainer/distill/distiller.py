"""One training step on a :class:`Session`: points, student, discriminator, in that order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..lora.adapter import load_lora_state, lora_state
from ..lora.pairs import LoraPair
from ..runs.guards import NanGuard
from .batch import make_batch
from .draws import Sizes, StepDraws, draw_step
from .session import Session
from .step import Outcome, gradients


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

    def step(self, step: int, done: float = 0.0) -> StepReport:
        """Optimizer step ``step`` (from 0) of a run of which the share ``done`` (0 to 1) is over.

        Gradients of all its micro-batches, the NaN check, both updates.
        """
        s = self.session
        self._set_learning_rates(step, done)
        for optimizer in (s.optimizer, s.discriminator_optimizer):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        remembered = s.terms.tensors()
        count, rank = s.config.optim.accumulation, s.accelerator.process_index
        sizes = Sizes(s.latent_shape, len(s.prompts), len(s.motions), len(s.replay))
        outcomes = [
            self.gradients(draw_step(s.config, sizes, step * count + micro, rank), step, 1 / count)
            for micro in range(count)
        ]
        report = self.update([outcome.logs for outcome in outcomes])
        if not report.taken:  # one NaN in an average would be in every later step
            s.terms.load(remembered)
        for outcome in outcomes:  # only now: the copy to the host waits for the device
            s.replay.add(outcome.prediction, outcome.rows, outcome.origins)
        return report

    def gradients(self, draws: StepDraws, step: int, share: float) -> Outcome:
        """Add ``share`` of the gradients that ``draws`` of step ``step`` give."""
        return gradients(self.session, make_batch(self.session, draws, step), share)

    def update(self, logs: list[dict[str, Tensor]]) -> StepReport:
        """Average over processes, check for NaN, clip, and take both optimizer steps or neither.

        Losses and gradient norms are read here, in one copy: the only time a step waits for the
        device. They are the same in all processes, which so decide alike.
        """
        s, clip = self.session, self.session.config.optim.grad_clip
        trained = [p for group in s.optimizer.param_groups for p in group["params"]]
        judged = [] if s.discriminator is None else list(s.discriminator.parameters())
        self._synchronise(trained + judged)
        norm = nn.utils.clip_grad_norm_(trained, clip or torch.inf)
        means = _mean(logs) | {"grad_norm": norm.float()}
        if judged:
            judge_norm = nn.utils.clip_grad_norm_(judged, 10 * clip or torch.inf)
            means["judge_grad_norm"] = judge_norm.float()
        values = shared_values(means, s.accelerator)
        check = sum(values[k] for k in ("loss", "adversarial", "discriminator") if k in values)
        taken = self.guard.check(check, values["grad_norm"] + values.get("judge_grad_norm", 0.0))
        if taken:
            s.optimizer.step()
            if s.discriminator_optimizer is not None:
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

    def _set_learning_rates(self, step: int, done: float) -> None:
        s, optim = self.session, self.session.config.optim
        factor = min(1.0, (step + 1) / max(optim.warmup_steps, 1))
        if optim.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * done))
        for group, base in zip(
            s.optimizer.param_groups, (optim.lr, s.config.recipe.motion.head_lr), strict=False
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
        groups |= s.terms.tensors()
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
        load_lora_state(s.model.unet, _unflatten(tensors["lora"]))
        s.ema.load_state_dict(tensors["ema"])
        s.replay.load_state_dict(tensors["replay"])
        s.terms.load(tensors)
        s.representation.load_state_dict(tensors.get("motion_head", {}))
        if s.discriminator is not None and s.discriminator_optimizer is not None:
            s.discriminator.load_state_dict(tensors["discriminator"])
            s.discriminator_optimizer.load_state_dict(optimizers["discriminator_optimizer"])
        s.ratio.load_state_dict(dict(tensors["ratio"]) if "ratio" in tensors else {"norms": None})
        s.optimizer.load_state_dict(optimizers["optimizer"])


def shared_values(means: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Scalars by name as numbers, each the mean over all processes: one NaN is everybody's."""
    stacked = torch.stack(list(means.values()))
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(means, stacked.tolist(), strict=True))


def _mean(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}


def _flatten(pairs: dict[str, LoraPair]) -> dict[str, Tensor]:
    return {
        f"{path}.{side}": getattr(p, side) for path, p in pairs.items() for side in ("up", "down")
    }


def _unflatten(tensors: dict[str, Tensor]) -> dict[str, LoraPair]:
    paths = sorted({name.rpartition(".")[0] for name in tensors})
    pairs = ((path, tensors[f"{path}.down"], tensors[f"{path}.up"]) for path in paths)
    return {path: LoraPair(down, up, alpha=float(len(down))) for path, down, up in pairs}
