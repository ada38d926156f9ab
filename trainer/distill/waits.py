"""Reports what a run waits for before and between its steps, and what comes next: on the terminal,
in log and state.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from ..runs.guards import StopRequested
from ..runs.progress import Progress
from .library import STAGE as LIBRARY
from .starts import STAGE as STARTS

MODEL, IMAGES, VIDEOS = "reading the base model", "reading the style images", "encoding videos"
TEXTS, WEIGHTS = "encoding the prompts", "reading the base model's weights"
FIRST_PREVIEW, PREVIEW, SAVING = "first preview", "preview", "saving the run"
NEXT = {
    MODEL: "the style images",
    IMAGES: "the teacher's example clips, the trajectory library",
    TEXTS: "the base model's weights",
    STARTS: "the base model's weights",
    WEIGHTS: "the teacher's example clips, the trajectory library",
    LIBRARY: "the first preview, then training",
    VIDEOS: "the first preview, then training",
    FIRST_PREVIEW: "training",
    PREVIEW: "training goes on",
    SAVING: "the LoRA file",
}
"""What a run waits for -> what comes after it, for people."""
UNITS = dict.fromkeys((FIRST_PREVIEW, PREVIEW, SAVING), "sets of clips")
"""What is counted, where it is not clips: a set for each number of sampling steps."""
STATE_SECONDS = 1.0


class Waits:
    """Called as ``(what, done, total)`` by the long parts of a run; ``total`` 0: not countable.

    Each wait begins with a line that says what comes next. Then there is a bar on a terminal,
    elsewhere a line every half minute, and `state.json` has the progress and the time left: by
    ``update``, which takes the fields of a `RunState`. Raises StopRequested where ``stop`` says so.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        update: Callable[..., None],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._log, self._update, self._stop = log, update, stop
        self._what, self._written = "", 0.0
        self._bar: Progress | None = None

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        if self._stop():
            self.over()
            raise StopRequested(f"Stopped while {_doing(what)}.")
        if what != self._what:
            self._begin(what, done, total)
        if self._bar is not None and done > self._bar.step:
            self._bar.update(done - self._bar.step)
        if time.monotonic() - self._written > STATE_SECONDS:
            self._write(done, total)
        if total and done >= total:
            self.over()

    def _begin(self, what: str, done: int, total: int) -> None:
        self.over()
        self._what, self._written = what, 0.0
        count = f", {total - done} {UNITS.get(what, 'clips')} to go" if total else ""
        self._log(f"{what.capitalize()}{count}. Next: {NEXT.get(what, 'training')}.")
        if total:
            self._bar = Progress(total, what, done, unit="clip", log=self._log)

    def _write(self, done: int, total: int) -> None:
        self._written = time.monotonic()
        left = None if self._bar is None else self._bar.eta_seconds
        count = f": {done} of {total}" if total else ""
        time_left = "" if left is None else f", about {tqdm.format_interval(left)} left"
        following = NEXT.get(self._what, "training")
        self._update(
            stage=self._what,
            stage_done=done,
            stage_total=total,
            next=following,
            eta_seconds=left,
            message=f"{self._what.capitalize()}{count}{time_left}. Next: {following}.",
        )

    def over(self) -> None:
        """End the wait and record that in the state."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        if self._what:
            cleared = {"stage": "", "stage_done": 0, "stage_total": 0, "next": "", "message": ""}
            self._update(**cleared, eta_seconds=None)
        self._what, self._bar = "", None


def _doing(what: str) -> str:
    return f"making the {what}" if what in (LIBRARY, FIRST_PREVIEW, PREVIEW) else what
