"""Progress of long work: a bar with speed, time left and memory, and ``log.txt``."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psutil
from tqdm import tqdm

from ..files import GIB, disk_errors

# Weight of the newest step in the running mean of the time a step takes.
_SMOOTHING = 0.1


def memory_gib() -> float:
    """Peak memory in GiB of the CUDA device in use, else what this process has in RAM now."""
    # Asking through sys.modules keeps viewers, which never load torch, light.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / GIB
    return psutil.Process().memory_info().rss / GIB


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class RunLog:
    """Writes texts to the console and, with the time, to a UTF-8 ``log.txt``; call it with one.

    A ``silent`` one has no console: one of several processes speaks for all.
    """

    def __init__(
        self, path: Path | None, console: TextIO | None = None, silent: bool = False
    ) -> None:
        self.path = Path(path) if path is not None else None
        self.silent = silent
        self.console = console if console is not None else sys.stdout

    def __call__(self, message: str) -> None:
        self._to_file(message)
        self._to_console(message)

    def exception(self, error: BaseException) -> None:
        """The whole traceback to the file, the error itself to the console."""
        trace = traceback.format_exception(type(error), error, error.__traceback__)
        self._to_file("".join(trace).rstrip())
        where = f" Details are in {self.path}." if self.path else ""
        self._to_console(f"{type(error).__name__}: {error}{where}")

    def _to_file(self, message: str) -> None:
        if self.path is None:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with (
            disk_errors(self.path),
            open(self.path, "a", encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            file.write(f"{stamp}  {message}\n")

    def _to_console(self, message: str) -> None:
        if self.silent or self.console is None:  # a Windows process without a console has none
            return
        # A console of another encoding (cp1252) must not end a run over an umlaut.
        encoding = getattr(self.console, "encoding", None) or "utf-8"
        shown = message.encode(encoding, errors="replace").decode(encoding)
        tqdm.write(shown, file=self.console)
        self.console.flush()


class Progress:
    """A bar for ``total`` steps; a context manager, `update` once a step.

    On a terminal it is drawn; elsewhere (a log file, a detached process) a line goes to ``log``, by
    default to standard error, every ``line_seconds``, also within a long step. `seconds_per_step`
    and `eta_seconds` are meant for `RunState`.
    """

    def __init__(
        self,
        total: int,
        description: str,
        initial: int = 0,
        unit: str = "step",
        log: Callable[[str], None] | None = None,
        line_seconds: float = 30.0,
        file: TextIO | None = None,
    ) -> None:
        self.total, self.step, self.description = total, initial, description
        self.seconds_per_step: float | None = None
        self._log, self._line_seconds = log or _to_stderr, line_seconds
        stream = file if file is not None else sys.stderr
        self._bar: Any = tqdm(
            total=total, desc=description, initial=initial, unit=unit, file=stream,
            disable=None if stream is not None else True, dynamic_ncols=True,
        )  # fmt: skip
        self._last = self._last_line = time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present speed; None before the first step."""
        if self.seconds_per_step is None:
            return None
        return max(self.total - self.step, 0) * self.seconds_per_step

    def set_total(self, total: int) -> None:
        """Correct the total, as a time limit does when the speed becomes known."""
        self.total = total
        self._bar.total = total

    def update(self, steps: int = 1, **values: float) -> None:
        """Count ``steps`` more as done; ``values`` (losses) are shown beside the bar."""
        now = time.monotonic()
        took, self._last = (now - self._last) / max(steps, 1), now
        old = self.seconds_per_step
        self.seconds_per_step = took if old is None else old + _SMOOTHING * (took - old)
        self.step += steps
        shown = {name: f"{value:.4g}" for name, value in values.items()}
        if self._bar.disable:
            self._maybe_line(shown)
        else:
            self._bar.set_postfix({**shown, "GiB": f"{memory_gib():.2f}"}, refresh=False)
            self._bar.update(steps)

    def _keep_telling(self) -> None:
        """Lines during a long step, so that the program does not seem to hang."""
        while not self._ended.wait(self._line_seconds / 3):
            self._maybe_line({})

    def _maybe_line(self, shown: dict[str, str]) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last_line < self._line_seconds:
                return
            self._last_line = now
        self._line(shown)

    def _line(self, shown: dict[str, str]) -> None:
        pace = self.seconds_per_step or 0.0
        eta = self.eta_seconds
        left = "unknown time" if eta is None else tqdm.format_interval(eta)
        texts = [f"{name} {value}" for name, value in shown.items()]
        self._log(
            f"{self.description}: {self.step}/{self.total}, {pace:.3g} s each, {left} left, "
            + ", ".join([*texts, f"{memory_gib():.2f} GiB"])
        )

    def __enter__(self) -> Progress:
        if self._bar.disable and self._line_seconds > 0:
            threading.Thread(target=self._keep_telling, name="progress", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._bar.close()
