"""A line to learn, in a module that new processes find."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build():
    """A line, and its loss on a batch that depends on the step alone."""
    torch.manual_seed(0)
    module = nn.Linear(1, 1)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return (module(x) - 2 * x).square().mean(), {}

    return module, loss_of


def fail():
    """Ends at once with an error."""
    raise ValueError("no line")
