"""The optimizers of a run: plain AdamW, in 8 bit, or with its state in main memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..settings import OptimConfig

Groups = list[dict[str, Any]]
BETAS = (0.9, 0.99)
"""Of AdamW; a shorter memory of squares than its usual 0.999, for runs of some hundred steps."""


def build_optimizer(config: OptimConfig, groups: Groups) -> torch.optim.Optimizer:
    """The student's optimizer for parameter ``groups``, as the settings ask.

    Raises ValueError with what to install when bitsandbytes is asked for and missing.
    """
    options: dict[str, Any] = {"betas": BETAS, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        return _adamw8bit(groups, options)
    if config.offload:
        return OffloadedAdamW(groups, **options)
    on_card = all(p.device.type == "cuda" for group in groups for p in group["params"])
    # Fused: one kernel, and no temporary copy of all parameters.
    return torch.optim.AdamW(groups, fused=on_card or None, **options)


def rate_factor(config: OptimConfig, step: int, done: float) -> float:
    """What a peak learning rate is multiplied by at optimizer step ``step`` (from 0) of a run that
    is ``done`` (0 to 1) complete: the warm-up, then the schedule.
    """
    factor = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * done))
    return factor


def _adamw8bit(groups: Groups, options: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            "`optim.optimizer`='adamw8bit' needs the package bitsandbytes, which is not "
            "installed: `python -m pip install bitsandbytes`, or use 'adamw', with "
            "`optim.offload`=true if memory is short."
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, **options)


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW that keeps its two moments in main memory and does its arithmetic there.

    The parameters stay where they are. A step copies gradients and parameters to the host and the
    new parameters back: twelve bytes per parameter over the bus. Its state dict is that of the
    inner AdamW, so a run may be resumed with or without it.
    """

    def __init__(self, groups: Groups, **options: Any):
        super().__init__(groups, {"lr": 1e-3})
        host = [
            {**group, "params": [torch.zeros(p.shape) for p in group["params"]]}
            for group in self.param_groups
        ]
        self.inner = torch.optim.AdamW(host, **options)

    def _pairs(self) -> Iterable[tuple[Tensor, Tensor]]:
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            yield from zip(ours["params"], theirs["params"], strict=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One AdamW step; a parameter without a gradient is left as it is."""
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
        for parameter, host in self._pairs():
            host.copy_(parameter)
            host.grad = None if parameter.grad is None else parameter.grad.float().cpu()
        self.inner.step()
        for parameter, host in self._pairs():
            if host.grad is not None:
                parameter.copy_(host)
            host.grad = None

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours["lr"] = theirs["lr"]


def state_bytes(config: OptimConfig, count: int) -> int:
    """Bytes on the device that the optimizer keeps for ``count`` parameters."""
    if config.offload:
        return 0
    if config.optimizer == "adamw8bit":
        return 2 * count + 2 * 4 * (count // 256 + 1)  # one fp32 scale for each block of 256
    return 2 * 4 * count
