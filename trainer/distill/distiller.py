"""One training step on a `Session`: points, student, discriminator, in that order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..adversarial.frame_losses import LossMemory
from ..lora.adapter import load_lora_state, lora_state
from ..lora.pairs import LoraPair
from ..lora.whole import add_whole, whole_of
from ..runs.guards import NanGuard
from .batch import Batch, Session, make_batch
from .draws import Sizes, draw_step
from .optimizers import rate_factor
from .sources import WHOLE
from .step import Outcome, gradients


@dataclass(frozen=True)
class StepReport:
    """Log entry of a step: numbers by name, and whether its optimizer step was applied."""

    values: dict[str, float]
    taken: bool


class Distiller:
    """Repeats the training step and holds what a checkpoint needs."""

    def __init__(self, session: Session, guard: NanGuard):
        self.session = session
        self.guard = guard

    def step(self, step: int, done: float = 0.0) -> StepReport:
        """Optimizer step ``step`` (from 0) of a run that is ``done`` (0 to 1) complete.

        Gradients of all its micro-batches, the NaN check, both updates.
        """
        s = self.session
        self._set_learning_rates(step, done)
        for optimizer in (s.optimizer, s.discriminator_optimizer):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        count, rank = s.config.optim.accumulation, s.accelerator.process_index
        memory, logs, made = s.memory, [], []
        for micro in range(count):
            draws = draw_step(s.config, sizes_of(s), step * count + micro, rank)
            batch = make_batch(s, draws, step)
            outcome = self.gradients(batch, memory, 1 / count)
            memory = outcome.memory
            logs.append(outcome.logs)
            made.append((outcome.prediction, batch.rows, batch.origins))
        report = self.update(logs)
        if report.taken:  # a NaN in an average would stay in all later steps
            s.memory = memory
        for prediction in made:  # only now: the copy to the host waits for the device
            s.replay.add(*prediction)
        return report

    def gradients(self, batch: Batch, memory: LossMemory, share: float) -> Outcome:
        """Add ``share`` of the gradients of ``batch``."""
        return gradients(self.session.parts, batch, memory, share)

    def update(self, logs: list[dict[str, Tensor]]) -> StepReport:
        """Average over processes, check for NaN, clip, and apply both optimizer steps or neither.

        Losses and gradient norms are read here in one copy, the only time a step waits for the
        device. They are equal in all processes, so all decide alike.
        """
        s, clip = self.session, self.session.config.optim.grad_clip
        trained = [p for group in s.optimizer.param_groups for p in group["params"]]
        discriminator = s.parts.discriminator
        judged = [] if discriminator is None else list(discriminator.parameters())
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
            s.parts.representation.update_ema()
            s.ema.update()
        return StepReport(values | {"lr": s.optimizer.param_groups[0]["lr"]}, taken)

    def _synchronise(self, parameters: list[nn.Parameter]) -> None:
        """Average the gradients over all processes, in one message; does nothing with a single
        process.
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
        factor = rate_factor(optim, step, done)
        for group, base in zip(
            s.optimizer.param_groups, (optim.lr, s.config.recipe.motion.head_lr), strict=False
        ):
            group["lr"] = base * factor

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every trained tensor by group, for a checkpoint."""
        s = self.session
        groups: dict[str, Any] = {
            "lora": _flatten(lora_state(s.model.network)),
            WHOLE: {} if (whole := whole_of(s.model.network)) is None else whole.differences,
            "ema": s.ema.state_dict(),
            "replay": s.replay.state_dict(),
            "motion_head": s.parts.representation.state_dict(),
            **s.memory.tensors(),
        }
        if s.parts.discriminator is not None:
            groups["discriminator"] = s.parts.discriminator.state_dict()
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
        load_lora_state(s.model.network, _unflatten(tensors["lora"]))
        add_whole(s.model.network, tensors.get(WHOLE, {}))
        s.ema.load_state_dict(tensors["ema"])
        s.replay.load_state_dict(tensors["replay"])
        s.memory.load(tensors)
        s.parts.representation.load_state_dict(tensors.get("motion_head", {}))
        if s.parts.discriminator is not None and s.discriminator_optimizer is not None:
            s.parts.discriminator.load_state_dict(tensors["discriminator"])
            s.discriminator_optimizer.load_state_dict(optimizers["discriminator_optimizer"])
        s.optimizer.load_state_dict(optimizers["optimizer"])


def sizes_of(session: Session) -> Sizes:
    """What the draws of the next step are made from."""
    s = session
    counts = len(s.prompts), len(s.motions), len(s.replay)
    return Sizes(s.plan, s.sources.latent_shape, s.sources.frames, *counts)


def shared_values(means: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Scalars by name as numbers, each the mean over all processes, so a NaN in one reaches all."""
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
