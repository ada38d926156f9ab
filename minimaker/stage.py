"""A resumable training stage of the mini model.

Step loop, progress, checkpoints, cosine schedule.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from .helpers import Helpers

SAVE_EVERY_SECONDS = 60.0


def half_precision() -> torch.autocast:
    """bfloat16 arithmetic if the CPU has instructions for it.

    It halves a step's time on such a CPU and doubles it on others.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Factor of the peak learning rate: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def steady(
    step: int, steps: int, warmup: int = 200, last: float = 0.2, floor: float = 0.02
) -> float:
    """Factor of the peak learning rate: linear warm-up, level, and a line down to ``floor`` over
    the ``last`` share of the steps, so that ``steps`` may be raised until then.
    """
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(last * steps, 1)
    return floor + (1 - floor) * min(left, 1.0)


class Ema:
    """Exponential moving average of a module's parameters.

    ``decay`` ramps up over the first steps.
    """

    def __init__(self, module: nn.Module, decay: float = 0.998):
        self.decay = decay
        self.shadow = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.shadow[key].lerp_(value.float(), 1 - decay)
            else:
                self.shadow[key] = value.clone()


def run_stage(
    name: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    work: Path,
    lr: float,
    ema_decay: float | None = None,
    schedule: Callable[[int, int], float] = cosine,
    helpers: Helpers | None = None,
) -> Ema | None:
    """Train ``module`` for ``steps`` steps, continuing from ``work/<name>.pt`` when it exists.

    ``loss_of(step)`` draws its own batch from ``step`` alone, so a resumed run sees the data that
    an uninterrupted one would have seen; what ``helpers`` add depends on their speed. A JSON line
    of measures goes to ``work/<name>.jsonl`` every 20 steps.
    """
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{name}.pt"
    ema = Ema(module, ema_decay) if ema_decay else None
    first = _restore(file, module, optimizer, ema) if file.exists() else 0
    saved = time.monotonic()
    if helpers:
        helpers.start(module, first)
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5)
    try:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps) * group.get("scale", 1.0)
            loss, measures = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if helpers:
                measures["helped"] = helpers.collect(module)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if helpers:
                helpers.publish(module)
            if ema:
                ema.update(module, step)
            if step % 20 == 0:
                bar.set_postfix(measures)
                _log(work / f"{name}.jsonl", step, {"loss": round(loss.item(), 6), **measures})
            if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
                _save(file, module, optimizer, ema, step + 1)
                saved = time.monotonic()
    finally:
        if helpers:
            helpers.stop()
    return ema


def _log(file: Path, step: int, measures: dict[str, float]) -> None:
    line = {"step": step, "time": round(time.time(), 1), **measures}
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def _save(file: Path, module: nn.Module, optimizer, ema: Ema | None, step: int) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    if ema:
        state["ema"] = ema.shadow
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def _restore(file: Path, module: nn.Module, optimizer, ema: Ema | None) -> int:
    state = torch.load(file, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if ema:
        ema.shadow = {k: v.to(ema.shadow[k].device) for k, v in state["ema"].items()}
    return state["step"]
