"""Processes that outlive the page: the queue's worker, and one task of each kind beside it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer.files import atomic_write
from trainer.runs.process import end_process, process_alive, start_detached
from trainer.runs.queue import Queue

KINDS = ("preflight", "caption", "preview", "export")
KEEPER_SECONDS = 3.0
RETRY_SECONDS = 20.0
TAIL_BYTES = 8000


class TaskError(ValueError):
    """A task that cannot be started now."""


@dataclass(frozen=True)
class Task:
    """The state of a task; ``label`` names what it works on, ``output`` is its last lines."""

    kind: str
    label: str = ""
    running: bool = False
    begun: float = 0.0
    output: str = ""
    stopped: bool = False
    """Whether the user stopped it."""

    @property
    def failed(self) -> bool:
        return not self.running and ("error:" in self.output or "Traceback (" in self.output)

    @property
    def problem(self) -> str:
        """The sentence after ``error:``, or the last line of a traceback."""
        _, found, sentence = self.output.rpartition("error: ")
        return sentence.strip() if found else self.output.strip().rpartition("\n")[2]


class Tasks:
    """``python -m trainer`` commands, one of each kind at a time, each with a folder of its own.

    Process id and start time are on disk, so that a restarted page finds its tasks again.
    """

    def __init__(self, folder: Path, pack: Path) -> None:
        self._folder, self._pack = folder, pack
        self._lock = threading.Lock()

    def folder(self, kind: str) -> Path:
        """Where a task of ``kind`` keeps its files."""
        return self._folder / kind

    def start(
        self,
        kind: str,
        label: str,
        arguments: Sequence[object],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Start ``python -m trainer ARGUMENTS``, its files written by ``prepare`` just before.

        Raises `TaskError` while one of that kind runs.
        """
        with self._lock:
            if self.status(kind).running:
                raise TaskError(f"A {kind} is already running; wait until it ends.")
            folder = self.folder(kind)
            folder.mkdir(parents=True, exist_ok=True)
            console = folder / "console.txt"
            console.unlink(missing_ok=True)
            prepare()
            argv = [sys.executable, "-m", "trainer", *(str(part) for part in arguments)]
            process = start_detached(argv, self._pack, console)
            started = psutil.Process(process.pid).create_time()
            values = {"pid": process.pid, "started": started, "label": label, "begun": time.time()}
            _write(folder, values)

    def stop(self, kind: str) -> None:
        """End the task of ``kind`` and what it started; nothing happens where none runs."""
        with self._lock:
            task, values = self.status(kind), self._values(kind)
            if not task.running:
                return
            _write(self.folder(kind), {**values, "stopped": True})
            end_process(int(values["pid"]))

    def _values(self, kind: str) -> dict[str, Any]:
        return json.loads((self.folder(kind) / "task.json").read_text(encoding="utf-8"))

    def status(self, kind: str) -> Task:
        """The running or the last task of ``kind``."""
        try:
            values = self._values(kind)
            running = process_alive(int(values["pid"]), float(values["started"]))
            label, begun = str(values["label"]), float(values["begun"])
            stopped = bool(values.get("stopped"))
        except (OSError, ValueError, KeyError, TypeError):
            return Task(kind)
        output = _tail(self.folder(kind) / "console.txt")
        return Task(kind, label, running, begun, output, stopped)


def _write(folder: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False)
    atomic_write(folder / "task.json", text.encode("utf-8"))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


class Keeper:
    """Ensures that a waiting queue has a worker, also after a restart of the machine."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._last_try = 0.0
        self._thread = threading.Thread(target=self._watch, name="queue keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _watch(self) -> None:
        while True:
            if time.monotonic() - self._last_try > RETRY_SECONDS:
                self.wake()
            time.sleep(KEEPER_SECONDS)

    def wake(self) -> None:
        """Start a worker now if one is needed; a failure shows as jobs that keep waiting."""
        if self._queue.jobs() and not self._queue.busy:
            self._last_try = time.monotonic()
            self._queue.start_worker()
