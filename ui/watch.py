"""Live view of a run: each component with a function that gives its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from .monitor import Events, exported_step
from .site import EXPECTED, Site
from .status import RunStatus


@dataclass(frozen=True)
class Moment:
    """The state at one update: the chosen run, its status and its events."""

    site: Site
    asked: str | None
    """The run that the page named; ``name`` is another one where there is no such run."""
    name: str | None
    status: RunStatus | None
    events: Events
    preview: str | None
    """Folder name of the preview that is looked at; None for the newest."""
    lora: str | None
    """Name of the exported file that is looked at."""

    @property
    def exported(self) -> int | None:
        """The step of the run's LoRA; None while there is none."""
        return exported_step(self.events)


Show = Callable[[Moment], Any]


@dataclass
class Watch:
    """Components that follow the run, in the order of the poll's outputs."""

    site: Site
    components: list[Any] = field(default_factory=list)
    functions: list[Show] = field(default_factory=list)

    def add(self, component: Any, show: Show) -> None:
        """``show`` gives the value (or update) of ``component`` for a moment."""
        self.components.append(component)
        self.functions.append(show)

    def look(
        self, name: str | None, preview: str | None, lora: str | None, seen: dict[int, int] | None
    ) -> list[Any]:
        """An update for every component, and the new ``seen``; what did not change is skipped.

        Skipping matters: a video whose HTML is sent again starts again.
        """
        site = self.site
        chosen = site.chosen(name)
        status = site.status(chosen)
        events = [] if status is None else site.events.read(status.run.events_path)
        moment = Moment(site, name, chosen, status, events, preview, lora)
        updates, now = [], dict(seen or {})
        for number, show in enumerate(self.functions):
            try:
                update = show(moment)
            except EXPECTED:  # a file that is being replaced; the next look sees it
                updates.append(gr.skip())
                continue
            mark = hash(repr(update))
            updates.append(gr.skip() if now.get(number) == mark else update)
            now[number] = mark
        return [*updates, now]
