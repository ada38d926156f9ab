"""The readiness check on the page: made in the background of what the form holds, shown always."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TrainConfig

from .draft import Draft, Drafts
from .form import label, to_config
from .places import Places
from .status import notice

if TYPE_CHECKING:
    from trainer.readiness import Finding, Readiness

AGAIN_SECONDS = 10.0
"""Seconds until missing files are looked for again."""
MARKS = {"ok": "&#10003;", "note": "i", "warn": "!", "bad": "&#10007;"}
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Look:
    """What is known of the settings ``asked`` (JSON): ``problem`` where they make no config.

    ``readiness`` is None before the first answer; ``busy`` while one is being made; ``before``
    whether what was in the form last was ready.
    """

    asked: str = ""
    readiness: Readiness | None = None
    problem: str = ""
    busy: bool = False
    made: float = 0.0
    before: bool = False

    @property
    def may_start(self) -> bool:
        """Whether Start can be pressed, which checks again. Not closed for the moment of another
        check: a click in that moment would be lost.
        """
        return self.before if self.busy else self.ready

    @property
    def ready(self) -> bool:
        return self.readiness is not None and self.readiness.ready and not self.busy

    @property
    def bad(self) -> dict[str, Finding]:
        """What is missing or wrong, by the setting that fixes it."""
        found = () if self.readiness is None else self.readiness.bad
        return {finding.setting: finding for finding in found if finding.setting}


class Readings:
    """The check of this server's draft. Thread-safe; `now` answers at once."""

    def __init__(self, places: Places, drafts: Drafts) -> None:
        self._places, self._drafts = places, drafts
        self._lock = threading.Lock()
        self._look = Look()

    def now(self) -> Look:
        """The newest look; starts another one where the form has changed, or to look again."""
        draft = self._drafts.load()
        asked = json.dumps(draft.values, sort_keys=True, default=str)
        with self._lock:
            known = self._look
            old = time.monotonic() - known.made > AGAIN_SECONDS and not known.ready
            if known.busy or (known.asked == asked and not old):
                return known if known.asked == asked else self._asking(asked)
            fresh = known.asked != asked
            again = replace(known, busy=True, before=False)
            self._look = self._asking(asked) if fresh else again
            thread = threading.Thread(target=self._work, args=(asked, draft), daemon=True)
            thread.start()
            # Avoid flicker while checking again.
            return self._look if fresh else known

    def _asking(self, asked: str) -> Look:
        return Look(asked, busy=True, before=self._look.may_start)

    def _work(self, asked: str, draft: Draft) -> None:
        look = Look(
            asked, problem="The check itself failed; the terminal running this page shows why."
        )
        try:
            config = to_config(draft.values, self._places, self._places.runs / "run")
            look = Look(asked, self.check(config))
        except EXPECTED as error:
            look = replace(look, problem=str(error) or type(error).__name__)
        finally:
            with self._lock:
                self._look = replace(look, made=time.monotonic())

    def check(self, config: TrainConfig) -> Readiness:
        """The readiness of ``config``, looked up now."""
        # Imports the whole trainer: done here so that the page starts quickly.
        from trainer.readiness import check
        from trainer.readiness.parts import Disk

        return check(config, Disk(self._places.comfyui, self._places.model_folders))


def readiness_panel(look: Look) -> str:
    """What was found and what is missing, with where to get it."""
    if look.problem:
        return notice("bad", "Not ready", look.problem)
    if look.readiness is None:
        return notice("live", "Checking that nothing is missing ...", "This takes a few seconds.")
    found = look.readiness.findings
    wrong = [finding for finding in found if finding.state != "ok"]
    fine = [finding for finding in found if finding.state == "ok"]
    title, colour = "Ready: nothing is missing", "good"
    if look.readiness.bad:
        count = len(look.readiness.bad)
        title = f"Not ready: {count} {'thing is' if count == 1 else 'things are'} missing or wrong"
        colour = "bad"
    elif look.readiness.warnings:
        title, colour = "Ready, with a warning", "warn"
    rows = "".join(map(_row, wrong))
    rest = f"<details><summary>{len(fine)} checks passed</summary>{''.join(map(_row, fine))}"
    return (
        f'<div class="notice {colour} ready" data-ready="{str(look.ready).lower()}">'
        f"<b>{title}</b>{rows}{rest}</details></div>"
    )


def _row(finding: Finding) -> str:
    gets = "".join(
        f"<li><b>{escape(d.name)}</b> ({escape(d.size)}, {escape(d.licence)}), from "
        f"{escape(d.repository)} on Hugging Face, into <code>ComfyUI/{escape(d.folder)}</code> or "
        "any folder</li>"
        for d in finding.downloads
    )
    gets += "".join(
        f"<li>found on this machine: <code>{escape(path)}</code></li>" for path in finding.found
    )
    more = f"<ul>{gets}</ul>" if gets and finding.state == "bad" else ""
    text = escape(finding.text).replace("\n", "<br>")
    return (
        f'<div class="finding {finding.state}" data-setting="{escape(finding.setting)}">'
        f"<i>{MARKS[finding.state]}</i>"
        f"<div><b>{escape(finding.part)}:</b> {text}{more}</div></div>"
    )


def find_label(setting: str) -> str:
    """The title of the field in which a missing part is pointed at."""
    return f"{label(setting)}: choose it on this disk"


def placed(setting: str, text: Any, places: Places) -> str:
    """``text`` as the value of ``setting``: a path that is there and may be read."""
    path: Path = places.read(str(text or ""))
    if not path.exists():
        raise ValueError(f"{label(setting)}: '{path}' does not exist; check the spelling.")
    return str(path)
