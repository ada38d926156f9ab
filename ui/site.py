"""What every tab needs: places, queue, tasks, drafts, scans; and how handlers report errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.runs.folder import Run, list_runs
from trainer.runs.queue import Queue

from .data import Scans
from .draft import Drafts
from .events import EventReader
from .jobs import Keeper, Tasks
from .places import PlaceError, Places
from .readiness import Readings
from .status import RunStatus, run_status

EXPECTED = (ValueError, OSError, RuntimeError, ImportError)
"""Errors whose message is meant for the visitor."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For handlers that answer at once."""
SHOWN: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
"""For handlers that may take seconds."""
ASKED: dict[str, Any] = {**SHOWN, "trigger_mode": "multiple"}
"""For handlers behind a question: a "no" still on its way must not swallow the next click."""


@dataclass
class Site:
    """The parts of one server."""

    places: Places
    queue: Queue = field(init=False)
    tasks: Tasks = field(init=False)
    drafts: Drafts = field(init=False)
    scans: Scans = field(init=False)
    keeper: Keeper = field(init=False)
    readings: Readings = field(init=False)
    events: EventReader = field(default_factory=EventReader)

    def __post_init__(self) -> None:
        self.places.make()
        self.queue = Queue(self.places.runs)
        self.tasks = Tasks(self.places.web / "tasks", self.places.pack)
        self.drafts = Drafts(self.places)
        self.scans = Scans(self.places.thumbs)
        self.keeper = Keeper(self.queue)
        self.readings = Readings(self.places, self.drafts)

    def runs(self) -> list[Run]:
        """Every run, the most recently changed first."""
        return [run for run in list_runs(self.places.runs) if not run.name.startswith("_")]

    def status(self, name: str | None) -> RunStatus | None:
        """The status of the run called ``name``; None when it is gone."""
        try:
            return run_status(self.places.run(name), self.queue)
        except PlaceError:
            return None

    def check_unused(self, folder: Path) -> None:
        """Raises `PlaceError` when a run that trains or waits needs the images in ``folder``."""
        for run in self.runs():
            try:
                images = run.config().images
            except EXPECTED:  # a run that cannot be read uses no folder
                continue
            if images is None or not images.resolve().is_relative_to(folder.resolve()):
                continue
            if run_status(run, self.queue).busy:
                raise PlaceError(
                    f"The run '{run.name}' is using '{folder.name}'; stop that run first."
                )

    def chosen(self, name: str | None) -> str | None:
        """``name`` if there is such a run, else what a page that is opened shows."""
        return name if name in [run.name for run in self.runs()] else self.first_shown(None)

    def first_shown(self, name: str | None) -> str | None:
        """The run that trains (``name`` before others); where none does, ``name`` or the newest."""
        runs = self.runs()
        names = [run.name for run in runs]
        busy = [run.name for run in runs[:20] if run_status(run, self.queue).busy]
        candidates = busy or names
        return name if name in candidates else next(iter(candidates), None)


def reporting(handler: Callable[..., Any]) -> Callable[..., Any]:
    """``handler`` with expected errors shown as a message on the page, its text made harmless."""

    @functools.wraps(handler)
    def wrapped(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except EXPECTED as error:
            text = escape(str(error) or type(error).__name__).replace("\n", "<br>")
            raise gr.Error(
                text, duration=15, title="Not possible", print_exception=False
            ) from error

    return wrapped


def heading(text: str, level: int = 2, shown: bool = True) -> None:
    """A heading; one that is not ``shown`` is for screen readers, where the tab's name says it."""
    kind = "" if shown else ' class="spoken"'
    gr.HTML(f"<h{level}{kind}>{escape(text)}</h{level}>", elem_classes="heading")


def tell(text: str) -> None:
    """A passing message on the page."""
    gr.Info(escape(text), duration=5)
