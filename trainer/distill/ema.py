"""Exponential moving average of the adapter; it is what previews, measurements and exports use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ParameterEma:
    """A slow fp32 copy of ``parameters``.

    ``copy <- decay copy + (1 - decay) parameter`` at each `update`. ``device`` is where the copies
    are kept, by default with the parameters.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decay: float,
        device: torch.device | str | None = None,
    ):
        self.parameters = list(parameters)
        self.decay = decay
        self.copies = [
            p.detach().to(device or p.device, torch.float32, copy=True) for p in self.parameters
        ]

    @torch.no_grad()
    def update(self) -> None:
        for copy, parameter in zip(self.copies, self.parameters, strict=True):
            copy.lerp_(parameter.to(copy.device, torch.float32), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average; the trained values come back afterwards."""
        kept = [p.detach().clone() for p in self.parameters]
        self._write(self.copies)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{index:04d}": copy for index, copy in enumerate(self.copies)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if len(state) != len(self.copies):
            raise ValueError(
                f"The stored average has {len(state)} tensors, this adapter {len(self.copies)}; "
                "resume with the run's config."
            )
        for key, copy in zip(sorted(state), self.copies, strict=True):
            copy.copy_(state[key])
