"""Conditions that end a run cleanly: a diverging loss, a request to stop."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, SupportsFloat

class StopRequested(Exception):  # noqa: N818  (a request, no error)
    """A stop was requested during long work before the first step."""


class TrainingDivergedError(RuntimeError):
    """Losses or gradients stayed NaN or infinite."""


class NanGuard:
    """Decides before each optimizer step whether to apply it.

    A step with a loss or gradient norm that is not finite must be skipped; after ``max_in_a_row``
    of them the run ends. Keep ``last_checkpoint`` up to date: the error names it.
    """

    def __init__(self, max_in_a_row: int = 5, last_checkpoint: Path | None = None) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"`max_in_a_row`={max_in_a_row} is not allowed; use 1 or more.")
        self.max_in_a_row = max_in_a_row
        self.last_checkpoint = last_checkpoint
        self.in_a_row = 0
        self.skipped = 0

    def check(self, loss: SupportsFloat, grad_norm: SupportsFloat) -> bool:
        """True when both are finite. Raises `TrainingDivergedError` after too many bad ones."""
        values = float(loss), float(grad_norm)
        if all(math.isfinite(value) for value in values):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.skipped += 1
        if self.in_a_row < self.max_in_a_row:
            return False
        good = "no checkpoint was saved yet"
        if self.last_checkpoint is not None:
            good = f"the last good checkpoint is {self.last_checkpoint}"
        raise TrainingDivergedError(
            f"The last {self.in_a_row} steps had no finite loss and gradient (loss {values[0]}, "
            f"gradient norm {values[1]}); none of them was applied, and {good}. Halve `optim.lr`, "
            "or use `hardware.precision` fp32 or bf16, and resume."
        )


class StopSignal:
    """A request to stop: a viewer's STOP file, Ctrl+C, or SIGTERM.

    Use as a context manager around the training loop and ask `requested` between steps. The first
    signal asks for a stop with save and export; a second one raises KeyboardInterrupt at once.
    Outside the main thread Python takes no signals, and only the file counts.
    """

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = Path(stop_file)
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Name of the signal or of the stop file; None while nobody has asked."""
        if self.signal_name is not None:
            return self.signal_name
        return self.stop_file.name if self.stop_file.exists() else None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            # SIGBREAK (Ctrl+Break) is what a Windows parent can send to a detached process.
            for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: the handler before was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal_name is not None:
            raise KeyboardInterrupt(f"second signal {name}: not waiting for the checkpoint")
        self.signal_name = name
