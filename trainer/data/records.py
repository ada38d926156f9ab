"""The result of a scan: one record per file, and the folder's report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

PLAIN_ROWS = 200
"""Files without a note that a report lists; nobody reads thousands."""
BRIEF_ROWS = 20
"""Refused files that a log names."""
WIDEST = 48
"""Letters of a column of a report."""
SHOWN_LETTERS = 160
"""Letters of a caption that a report shows."""


class DataError(ValueError):
    """A folder or file of training data that cannot be used; the message says what to do next."""


@dataclass(frozen=True, kw_only=True)
class MediaRecord:
    """One file of a data folder.

    `status` is "used", "refused" (it is of the right kind, `reason` says what is wrong) or
    "ignored" (not of the kind that was looked for). `caption` is the prompt as the model will see
    it, `caption_source` is "txt", "caption", "table", "template" or "neutral" (see
    `Caption`). `width` and `height` are upright pixels, 0 if unknown.
    `repeats` is the sampling weight. `notes` tell a person about a used file: what was converted,
    problems of its caption, which file it duplicates.
    """

    path: Path
    status: str
    reason: str = ""
    caption: str = ""
    caption_source: str = ""
    repeats: int = 1
    width: int = 0
    height: int = 0
    sha256: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def captioned(self) -> bool:
        """Whether it has a caption of its own."""
        return self.caption_source in ("txt", "caption", "table")


R = TypeVar("R", bound=MediaRecord)


@dataclass(frozen=True)
class MediaFolder(Generic[R]):
    """All records of one folder, in natural order, and notes about the folder as a whole."""

    root: Path
    records: list[R]
    notes: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[R]:
        """The records that training draws from."""
        return self._with("used")

    @property
    def refused(self) -> list[R]:
        """Files of the right kind that cannot be used."""
        return self._with("refused")

    @property
    def ignored(self) -> list[R]:
        """Files of another kind."""
        return self._with("ignored")

    def summary(self) -> str:
        """One line of counts."""
        used = self.used
        own = sum(record.captioned for record in used)
        return (
            f"{len(used)} used ({own} with a caption, {len(used) - own} without), "
            f"{len(self.refused)} refused, {len(self.ignored)} ignored"
        )

    def brief(self) -> str:
        """The counts, notes, and the first files that cannot be used, with the reason."""
        refused = self.refused
        lines = [f"{self.root}: {self.summary()}", *(f"note: {note}" for note in self.notes)]
        for record in refused[:BRIEF_ROWS]:
            lines.append(f"refused: {record.path.relative_to(self.root)}: {record.reason}")
        if len(refused) > BRIEF_ROWS:
            lines.append(f"... and {len(refused) - BRIEF_ROWS} more that are refused")
        return "\n".join(lines)

    def report(self) -> str:
        """The counts, then a table of files with their prompt or the reason why they are not used.

        Every file that is not used or has a note is in it, and the first of the others.
        """
        head = ("status", "pixels", "repeats", "file", "prompt or reason")
        plain = [r for r in self.records if r.status == "used" and not r.notes]
        left = {id(record) for record in plain[PLAIN_ROWS:]}
        rows = [head, *(self._row(record) for record in self.records if id(record) not in left)]
        widths = [min(WIDEST, max(len(row[column]) for row in rows)) for column in range(4)]
        lines = [f"{self.root}: {self.summary()}", *(f"note: {note}" for note in self.notes), ""]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
            lines.append("  ".join([*cells, row[4]]))
        if left:
            lines.append(f"... and {len(left)} more that are used, without notes")
        return "\n".join(lines) + "\n"

    def _with(self, status: str) -> list[R]:
        return [record for record in self.records if record.status == status]

    def _row(self, record: R) -> tuple[str, str, str, str, str]:
        used = record.status == "used"
        text = f'"{shorten(record.caption)}"' if used else record.reason
        if record.notes:
            text += f" [{'; '.join(record.notes)}]"
        return (
            record.status,
            f"{record.width}x{record.height}" if record.width else "-",
            f"x{record.repeats}" if used else "-",
            record.path.relative_to(self.root).as_posix(),
            text,
        )


def shorten(text: str, letters: int = SHOWN_LETTERS) -> str:
    """``text``, or its beginning and how long it is."""
    if len(text) <= letters:
        return text
    return f"{text[:letters].rstrip()}... ({len(text)} letters)"


def check_usable(folder: MediaFolder[R], plural: str, hint: str) -> None:
    """Do nothing if `folder` has something to draw from.

    Raises DataError with counts, `hint` and the whole report, if no file of `folder` can be used.
    """
    if not folder.used:
        raise DataError(
            f"No usable {plural} in '{folder.root}': {len(folder.refused)} refused, "
            f"{len(folder.ignored)} ignored. {hint}\n\n{folder.report()}"
        )
