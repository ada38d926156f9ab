"""The result of a readiness check, one finding for each part."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..models.downloads import Download

State = Literal["ok", "note", "warn", "bad"]
WORDS: dict[State, str] = {"ok": "ok", "note": "note", "warn": "WARNING", "bad": "TO FIX"}


class NotReadyError(ValueError):
    """A training that cannot work yet; the message says what to do, for every part."""


@dataclass(frozen=True)
class Finding:
    """The state of one ``part``, as text for people.

    "bad": training would fail. "warn": it would work, but probably not as intended. "note": worth
    knowing. ``setting`` is the one that fixes it; ``downloads`` may be fetched; ``found`` are paths
    on this machine that would do as the setting's value.
    """

    part: str
    state: State
    text: str
    setting: str = ""
    downloads: tuple[Download, ...] = ()
    found: tuple[str, ...] = ()

    def report(self) -> str:
        """The finding on lines of their own, what to do included."""
        lines = [f"{WORDS[self.state]:<8} {self.part}: {self.text}"]
        lines += [f"found on this machine: {path}" for path in self.found]
        lines += [f"get: {download.text()}" for download in self.downloads]
        if self.state == "bad" and self.setting and (self.downloads or self.found):
            lines.append(f"then: --{self.setting.replace('_', '-')} PATH")
        return ("\n" + " " * 9).join(lines)


@dataclass(frozen=True)
class Readiness:
    """All findings, in the order of the form."""

    findings: tuple[Finding, ...]

    @property
    def bad(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.state == "bad")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.state == "warn")

    @property
    def ready(self) -> bool:
        """Whether a training can start."""
        return not self.bad

    def text(self) -> str:
        """Every finding, as a terminal shows it."""
        end = "Ready." if self.ready else f"NOT ready: {_count(len(self.bad))}."
        return "\n".join([*(finding.report() for finding in self.findings), end])

    def require(self) -> Readiness:
        """Itself; raises `NotReadyError` with everything that is missing."""
        if self.ready:
            return self
        reports = textwrap.indent("\n".join(finding.report() for finding in self.bad), "  ")
        raise NotReadyError(f"The training cannot start; {_count(len(self.bad))}:\n{reports}")

    def to_json(self) -> dict[str, Any]:
        return {"ready": self.ready, "findings": [asdict(finding) for finding in self.findings]}


def _count(number: int) -> str:
    return (
        "one thing is missing or wrong" if number == 1 else f"{number} things are missing or wrong"
    )
