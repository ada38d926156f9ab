"""``events.jsonl``: one JSON object per line for every step and event; append-only."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..files import atomic_write
from ..files import disk_errors
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def plain(value: Any) -> Any:
    """``value`` as strict JSON takes it: NaN and infinity become None, one-element tensors numbers.

    Raises TypeError for anything else that JSON does not know.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} cannot be an event's value; use numbers and texts.")


def read_events(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """All events of a file, or those of one ``kind``; none if there is no file.

    A last line that is still being written, or was cut off by a crash, is skipped. A damaged line
    in between is skipped with a warning.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    *lines, _torn = content.split(b"\n")
    events = [_event(path, number, line) for number, line in enumerate(lines, 1)]
    return [event for event in events if event and kind in (None, event["kind"])]


def _event(path: Path, number: int, line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line.decode("utf-8"))
        if isinstance(event, dict) and isinstance(event.get("kind"), str):
            return event
        problem = "not an object with a kind"
    except ValueError as error:
        problem = str(error)
    warnings.warn(f"{path}: line {number} is damaged and was skipped ({problem}).", stacklevel=3)
    return None


class EventLog:
    """Appends events; use as a context manager or `close` it.

    Opening it repairs the file after a crash: an incomplete last line is removed, and with
    ``resume_step`` the events of later steps are dropped, for those steps are taken again.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = Path(path)
        self._repair(resume_step)
        self._file: IO[bytes] = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def append(self, kind: str, **values: Any) -> None:
        """Write one event (with the time, seconds since 1970) at once. Raises `DiskFullError`."""
        event = {"kind": kind, "time": round(time.time(), 3), **plain(values)}
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8", errors="replace")
        with disk_errors(self.path):
            # Unbuffered: a line of a killed process is either in the file or it is not.
            while data:
                data = data[self._file.write(data) :]

    def _repair(self, resume_step: int | None) -> None:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        lines = content.split(b"\n")[:-1]
        if resume_step is not None:
            lines = [line for line in lines if not _is_later(line, resume_step)]
        whole = b"".join(line + b"\n" for line in lines)
        if whole != content:
            atomic_write(self.path, whole)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_later(line: bytes, step: int) -> bool:
    try:
        event = json.loads(line.decode("utf-8"))
    except ValueError:
        return False
    return isinstance(event, dict) and isinstance(event.get("step"), int) and event["step"] > step


MARGIN = 1.1
"""An earlier step must score this many times the last one's score to be preferred: a preview has
only two or three clips.
"""


def preview_score(event: Mapping[str, Any]) -> float | None:
    """Motion times style times content of a "preview" event, less what is left of the constants
    that all of the base model's clips have; the mean over its numbers of steps, 1 is perfect.

    Style is the part of the way that is done, content what is left of the teacher's. Motion is
    how far the student moves as the teacher does, which holds in any look, and less where its
    flow is below half of the teacher's or above twice; in the events of old runs, which do not say
    that, the student's flow over the teacher's or its inverse. None where the preview measured no
    style: then there is nothing to weigh motion against.
    """
    kept, reached = event.get("motion_kept") or {}, event.get("style_reached") or {}
    content, left = event.get("content_kept") or {}, event.get("constants_left") or {}
    agrees = event.get("motion_agrees") or {}
    known = [steps for steps in reached if kept.get(steps) is not None]
    if not known:
        return None
    parts = [
        _motion(kept[steps], agrees.get(steps))
        * _share(reached[steps])
        * _share(content.get(steps, 1.0))
        * (1 - _share(left.get(steps, 0.0)))
        for steps in known
    ]
    return sum(parts) / len(parts)


def _motion(kept: float, agrees: float | None) -> float:
    ratio = min(kept, 1 / max(kept, 1e-6))
    return ratio if agrees is None else _share(agrees) * min(1.0, 2 * ratio)


def _share(value: float | None) -> float:
    return min(max(value or 0.0, 0.0), 1.0)


def best_step(events: Sequence[Mapping[str, Any]], steps: Collection[int]) -> int | None:
    """The one of ``steps`` (those with a checkpoint) whose preview scores best.

    The last of them unless an earlier one beats it clearly (`MARGIN`); None where no preview of
    ``steps`` can be scored. ``events`` are "preview" events; a later one of a step replaces it.
    """
    scored = ((event["step"], preview_score(event)) for event in events if event["step"] in steps)
    known = {step: score for step, score in scored if score is not None}
    if not known:
        return None
    last, best = max(known), max(known, key=lambda step: (known[step], step))
    return best if known[best] > MARGIN * known[last] else last
