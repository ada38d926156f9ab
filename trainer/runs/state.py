"""``state.json``: what a run is doing, for all viewers of its folder. Replaced atomically."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..files import atomic_write, retry_denied
from .folder import Run
from .process import process_alive, this_process

Status = Literal[
    "starting", "preflight", "running", "stopping", "stopped", "finished", "failed", "interrupted"
]
STATUSES: tuple[str, ...] = get_args(Status)
LIVE: tuple[str, ...] = ("starting", "preflight", "running", "stopping")


@dataclass(frozen=True)
class RunState:
    """The state of a run. Times are seconds since 1970, memory is GiB, ``steps`` is the goal.

    While it waits for something between steps (the trajectory library, a preview) ``stage`` names
    it, ``stage_done`` of ``stage_total`` tells how far it is, ``eta_seconds`` how long it takes yet,
    ``next`` what comes after it, and ``message`` says all that in a sentence.
    """

    status: Status = "starting"
    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None
    seconds_per_step: float | None = None
    memory_gib: float | None = None
    pid: int | None = None
    pid_started: float | None = None
    started: float | None = None
    updated: float | None = None
    error: str | None = None
    message: str = ""
    stage: str = ""
    stage_done: int = 0
    stage_total: int = 0
    next: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"`status`={self.status!r} is not known; use {', '.join(STATUSES)}.")

    @classmethod
    def of_this_process(cls, steps: int, **values: Any) -> RunState:
        """The first state of a run in this process; change it with `dataclasses.replace`."""
        pid, pid_started = this_process()
        return cls(steps=steps, pid=pid, pid_started=pid_started, started=time.time(), **values)

    @property
    def live(self) -> bool:
        """True while a process works on the run (or is about to)."""
        return self.status in LIVE


@dataclass
class StateBoard:
    """The state of the run that this process trains; written only where ``writes``."""

    run: Run
    state: RunState
    writes: bool = True

    def update(self, **changes: Any) -> None:
        """Change fields of the state. Raises `DiskFullError`."""
        self.state = replace(self.state, **changes)
        if self.writes:
            write_state(self.run, self.state)


def write_state(run: Run, state: RunState) -> None:
    """Replace ``state.json``; ``updated`` is set to now. Raises `DiskFullError`."""
    values = {key: _finite(value) for key, value in asdict(state).items()}
    values["updated"] = time.time()
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(run.state_path, text.encode("utf-8", errors="replace"))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_state(run: Run) -> RunState:
    """The state as a viewer shows it.

    A run whose process is gone is "interrupted"; one that never began is "starting" without a pid.
    """
    try:
        state = _parse(retry_denied(run.state_path.read_bytes))
    except FileNotFoundError:
        return RunState(message="not started yet")
    except (ValueError, TypeError) as error:
        return RunState(status="interrupted", error=f"state.json is damaged: {error}",
                        message=_hint(run.path))  # fmt: skip
    if not state.live or state.pid is None:
        return state
    if process_alive(state.pid, state.pid_started or 0.0):
        return state
    return replace(
        state, status="interrupted", eta_seconds=None, stage="", next="",
        message=f"Process {state.pid} is gone. {_hint(run.path)}",
    )  # fmt: skip


def _parse(content: bytes) -> RunState:
    values = json.loads(content.decode("utf-8"))
    if not isinstance(values, dict):
        raise TypeError(f"expected an object, got {type(values).__name__}")
    known = {field.name for field in fields(RunState)}
    return RunState(**{key: value for key, value in values.items() if key in known})


def _hint(path: Path) -> str:
    return f'Continue with: python -m trainer resume "{path}"'
