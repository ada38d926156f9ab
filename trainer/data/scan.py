"""Scans a data folder; every file gets a record as used, refused or ignored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from ..files import file_sha256, natural_key
from .captions import CaptionRules
from .records import DataError, R
from .sidecars import SUFFIXES, TABLES, find_sidecar, find_sidecars

MANY_REPEATS = 100
SHARED = "one file for"
"""How the note begins that two pictures have one caption file."""
_REPEAT_FOLDER = re.compile(r"^(\d{1,6})_(.+)$")


class Refused(Exception):
    """Raised by an inspector: this file cannot be used, and the message says why."""


@dataclass(frozen=True)
class MediaKind(Generic[R]):
    """What one scan looks for; `label` is "an image" or "a video".

    `suffixes` (lower case) are opened by `inspect(path)`, which returns the record's extra fields
    or raises `Refused`. Suffixes in `unsupported` are refused with the reason given there,
    because users expect such files to work. Everything else is ignored, with the reason that
    `hidden(path)` gives, if any.
    """

    label: str
    suffixes: frozenset[str]
    unsupported: dict[str, str]
    record: type[R]
    inspect: Callable[[Path], dict[str, Any]]
    hidden: Callable[[Path], str] = lambda path: ""


def scan_folder(
    folder: Path | str, kind: MediaKind[R], captions: CaptionRules
) -> tuple[Path, list[R], list[str]]:
    """The absolute root, a record for every file below it, and notes on the folder.

    The records are in natural order: `2.png` comes before `10.png`. A link that leaves the folder
    is refused; hidden files and folders, and links to folders that are scanned anyway, are ignored.
    Captions of files of this kind get no record.

    Raises DataError if `folder` is missing or not a folder.
    """
    root = _checked_root(folder)
    entries = _walk(root)
    wanted = kind.suffixes | kind.unsupported.keys()
    owners = _caption_files([path for path, _ in entries if path.suffix.lower() in wanted])
    scan = _Scan(root, kind, captions)
    records: list[R] = []
    first_with: dict[str, Path] = {}
    for path, settled in entries:
        if settled is None and path.suffix.lower() in SUFFIXES:
            if path in owners:
                continue
            settled = ("ignored", f"not a caption: there is not {kind.label} of that name")
        elif settled is None and path.name in TABLES:
            settled = (
                "ignored",
                "a table of captions; caption files beside the pictures take precedence",
            )
        record = scan.record(path, settled)
        sharers = owners.get(find_sidecar(path) or path, ())
        if record.status == "used" and len(sharers) > 1:
            names = ", ".join(each.name for each in sharers)
            record.notes.append(f"caption: {SHARED} {names}")
        if record.status == "used":
            first = first_with.setdefault(record.sha256, path)
            if first != path:
                record.notes.append(f"same file as {first.relative_to(root).as_posix()}")
        records.append(record)
    return root, records, _repeat_notes(root, records)


@dataclass(frozen=True)
class _Scan(Generic[R]):
    root: Path
    kind: MediaKind[R]
    captions: CaptionRules

    def record(self, path: Path, settled: tuple[str, str] | None) -> R:
        suffix = path.suffix.lower()
        if settled is None and suffix in self.kind.unsupported:
            settled = ("refused", self.kind.unsupported[suffix])
        elif settled is None and suffix not in self.kind.suffixes:
            settled = ("ignored", self._not_ours(path))
        if settled is not None:
            return self.kind.record(path=path, status=settled[0], reason=settled[1])
        try:
            return self._used(path)
        except Refused as refusal:
            reason = str(refusal)
        except OSError as error:
            reason = f"cannot be read ({error.strerror or error})"
        return self.kind.record(path=path, status="refused", reason=reason)

    def _not_ours(self, path: Path) -> str:
        try:
            return self.kind.hidden(path) or f"not {self.kind.label}"
        except OSError:
            return f"not {self.kind.label}"

    def _used(self, path: Path) -> R:
        if path.stat().st_size == 0:
            raise Refused("the file is empty (0 bytes); copy it again")
        repeats = repeats_of(path, self.root)[0]
        if repeats == 0:
            raise Refused("its folder asks for 0 repeats")
        found = self.kind.inspect(path)
        caption = self.captions.read(path, self.root)
        notes = [*found.pop("notes", []), *(f"caption: {text}" for text in caption.problems)]
        return self.kind.record(
            path=path,
            status="used",
            caption=caption.text,
            caption_source=caption.source,
            repeats=repeats,
            sha256=file_sha256(path),
            notes=notes,
            **found,
        )


def _caption_files(paths: list[Path]) -> dict[Path, list[Path]]:
    """Every caption file with the file it belongs to."""
    owners: dict[Path, list[Path]] = {}
    for path in paths:
        for sidecar in find_sidecars(path):
            owners.setdefault(sidecar, []).append(path)
    return owners


def repeats_of(path: Path, root: Path) -> tuple[int, str]:
    """Number and name of the nearest `10_name` folder above `path`, at most `root`; or (1, "")."""
    for parent in path.parents:
        match = _REPEAT_FOLDER.match(parent.name)
        if match:
            return int(match[1]), match[2]
        if parent == root:
            break
    return 1, ""


def _repeat_notes(root: Path, records: list[R]) -> list[str]:
    """Notes on repeat folders, one per folder; their names never become captions."""
    notes = []
    for parent in sorted({record.path.parent for record in records if record.repeats != 1}):
        repeats, name = repeats_of(parent / "x", root)
        note = (
            f"'{parent.name}': each file is used {repeats} times; '{name}' is not used as a caption"
        )
        if repeats > MANY_REPEATS:
            note += "; rename the folder if the number is not a repeat count"
        notes.append(note)
    return notes


def _checked_root(folder: Path | str) -> Path:
    root = Path(folder).expanduser().absolute()
    if not root.exists():
        raise DataError(f"The folder '{root}' does not exist; check the spelling of the path.")
    if not root.is_dir():
        raise DataError(f"'{root}' is a file; choose the folder that contains it.")
    return root


def _walk(root: Path) -> list[tuple[Path, tuple[str, str] | None]]:
    """Every file below `root`, with None, or with a (status, reason) if that is already known."""
    found: list[tuple[Path, tuple[str, str] | None]] = []

    def unreadable(error: OSError) -> None:
        reason = f"the folder cannot be listed ({error.strerror or error})"
        found.append((Path(error.filename), ("refused", reason)))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        for name in list(folders):
            path = Path(folder, name)
            settled = _settled(path, root, is_folder=True)
            if settled:
                folders.remove(name)
                found.append((path, settled))
        found.extend((Path(folder, name), _settled(Path(folder, name), root)) for name in files)
    return sorted(found, key=lambda item: natural_key(item[0].relative_to(root)))


def _settled(path: Path, root: Path, is_folder: bool = False) -> tuple[str, str] | None:
    """The status of files that need not be opened."""
    if path.name.startswith(".") or path.name == "__MACOSX":
        return "ignored", "hidden folder" if is_folder else "hidden file"
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        return "refused", "a broken link; restore its target or delete it"
    if not target.is_relative_to(root.resolve()):
        return "refused", "a link out of this folder; copy its target into the folder"
    # To Python 3.10 and 3.11 a Windows junction is no symlink, but it resolves to another place.
    if is_folder and target != root.resolve() / path.relative_to(root):
        return "ignored", "a link to a folder that is already scanned"
    if not is_folder and not path.is_file():
        return "ignored", "not a regular file"
    return None
