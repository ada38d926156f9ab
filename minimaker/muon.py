"""Muon: momentum whose matrices are made orthogonal, for the small networks' training from nothing.

By Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025 (arXiv
2502.16982, eq. 4), which gives its steps the size of AdamW's, so that one learning rate serves
both. Vectors, embeddings and whatever a group calls ``plain`` are trained by AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that brings singular values near 1."""
ITERATIONS = 4
SIZE = 0.2
"""Root mean square of a step at learning rate 1, as AdamW's steps have it."""


class Muon(torch.optim.Optimizer):
    """``Muon(groups, lr)``; a group with ``plain=True`` is trained by AdamW alone.

    Convolutions count as matrices with one row an output channel.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "plain": False}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                matrix = weight.ndim >= 2 and not group["plain"]
                moved = self._orthogonal if matrix else self._adam
                move = moved(self.state[weight], weight.grad, group)
                if weight.ndim >= 2:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(group["lr"] * move)

    def _orthogonal(self, state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
        mean = state.setdefault("momentum", torch.zeros_like(grad))
        mean.lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"]).flatten(1)
        size = SIZE * max(ahead.shape) ** 0.5
        return (size * orthogonal(ahead)).view_as(grad)

    def _adam(self, state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
        if not state:
            state.update(count=torch.zeros(()), mean=torch.zeros_like(grad))
            state["square"] = torch.zeros_like(grad)
        state["count"] += 1
        for name, value, beta in zip(
            ("mean", "square"), (grad, grad.square()), group["betas"], strict=True
        ):
            state[name].lerp_(value, 1 - beta)
        early = [1 - beta ** state["count"].item() for beta in group["betas"]]
        return state["mean"] / early[0] / ((state["square"] / early[1]).sqrt() + 1e-8)


def orthogonal(matrix: Tensor) -> Tensor:
    """``matrix`` (n, m) with all of its singular values brought near 1, by Newton-Schulz steps."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
