"""Processes that lend a training stage the other cores: each adds the gradients of its own batches.

One thread on each core does more than several threads on one step, whose parts wait for each
other. Nobody waits here: a step takes what helpers have finished, at weights of at most a few
steps before (asynchronous descent, Recht et al. 2011, arXiv 1106.5730).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import parent_process
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as processes
from torch import Tensor, nn

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
Build = Callable[..., tuple[nn.Module, Loss]]
FAR, OFTEN = 10_000_000, 8
"""Between the steps whose batches the main process and its helpers draw, and a bound of how many a
helper makes in one of the main process.
"""


class Shared(NamedTuple):
    """Memory of all processes, flat: weights, sum of gradients (n,), how many were added (1,)."""

    weights: Tensor
    gradients: Tensor
    added: Tensor


class Helpers:
    """``count`` processes that each call ``build(*given)`` for a module and its loss.

    ``build`` is a function of a module, so that a new process finds it.
    """

    def __init__(self, count: int, build: Build, *given: Any):
        self.count, self._build, self._given = count, build, given
        self._running: list[Any] = []

    def start(self, module: nn.Module, step: int) -> None:
        """Begin to add gradients at the weights of ``module``, which has made ``step`` steps."""
        size = sum(weight.numel() for weight in module.parameters())
        self._shared = Shared(*(torch.zeros(n).share_memory_() for n in (size, size, 1)))
        context = processes.get_context("spawn")
        self._lock = context.Lock()
        self.publish(module)
        for index in range(1, 1 + self.count):
            first = index * FAR + step * OFTEN
            given = (first, self._shared, self._lock, self._build, self._given)
            self._running.append(context.Process(target=_help, args=given, daemon=True))
            self._running[-1].start()

    def collect(self, module: nn.Module) -> int:
        """Average the gradients of ``module`` with those added since the last step; how many were.

        Raises RuntimeError where a helper has ended.
        """
        if not all(process.is_alive() for process in self._running):
            raise RuntimeError("A helper has ended; its error stands above.")
        with self._lock:
            added = int(self._shared.added.item())
            if added:
                for weight, more in _pairs(module, self._shared.gradients):
                    if weight.grad is not None:
                        weight.grad.add_(more).div_(1 + added)
                self._shared.gradients.zero_()
                self._shared.added.zero_()
        return added

    def publish(self, module: nn.Module) -> None:
        """Hand the helpers the weights of ``module``."""
        with self._lock, torch.no_grad():
            for weight, part in _pairs(module, self._shared.weights):
                part.copy_(weight)

    def stop(self) -> None:
        """End the helpers."""
        for process in self._running:
            process.terminate()
            process.join()
        self._running.clear()


def _pairs(module: nn.Module, flat: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every parameter with its part of ``flat``, in its shape."""
    weights = list(module.parameters())
    parts = flat.split([weight.numel() for weight in weights])
    return ((weight, part.view_as(weight)) for weight, part in zip(weights, parts, strict=True))


def _help(first: int, shared: Shared, lock: Any, build: Build, given: tuple[Any, ...]) -> None:
    """Add gradients until the main process has ended."""
    module, loss_of = build(*given)
    main = parent_process()
    for step in count(first):
        if main is None or not main.is_alive():
            return
        with lock, torch.no_grad():
            for weight, part in _pairs(module, shared.weights):
                weight.copy_(part)
        module.zero_grad(set_to_none=True)
        loss_of(step)[0].backward()
        with lock:
            for weight, part in _pairs(module, shared.gradients):
                if weight.grad is not None:
                    part.add_(weight.grad)
            shared.added.add_(1)
