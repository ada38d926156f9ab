"""Uploaded images and zip archives become a folder; what could harm the machine is refused."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from trainer.data.images import SUFFIXES
from trainer.runs.files import staged_folder
from trainer.runs.folder import slug

from .places import PlaceError

MIB = 2**20
MAX_FILES = 5000
MAX_FILE_BYTES = 256 * MIB
MAX_TOTAL_BYTES = 4096 * MIB
MAX_RATIO = 100
"""A zip entry that grows more than this when unpacked is a bomb: images hardly shrink in a zip."""
RATIO_FREE_BYTES = 10 * MIB
SPARE_BYTES = 512 * MIB
"""What has to be left free on the disk."""
KEPT = SUFFIXES | {".txt", ".caption"}
_BLOCK = 1 << 20


@dataclass
class Received:
    """The new folder, how many files it has, and what was left out and why."""

    folder: Path
    files: int = 0
    left_out: list[str] = field(default_factory=list)


@dataclass
class _Budget:
    """Counts real bytes, whatever the headers of an archive claim."""

    files: int = 0
    total: int = 0

    def one_more(self) -> None:
        self.files += 1
        if self.files > MAX_FILES:
            raise PlaceError(f"More than {MAX_FILES} files; upload a smaller set.")

    def spend(self, count: int, name: str, size: int) -> None:
        self.total += count
        if size > MAX_FILE_BYTES:
            raise PlaceError(f"'{name}' is larger than {MAX_FILE_BYTES // MIB} MiB.")
        if self.total > MAX_TOTAL_BYTES:
            raise PlaceError(f"The upload is larger than {MAX_TOTAL_BYTES // MIB} MiB unpacked.")


def receive(files: Sequence[Path], name: str, uploads: Path) -> Received:
    """Copy images, captions and the contents of zips to a new folder in ``uploads``.

    The folder appears when all of it is there. Raises `PlaceError` for zip bombs, paths that lead
    out of the archive, links, passwords, and uploads beyond the limits.
    """
    if not files:
        raise PlaceError("Nothing was uploaded; choose images or a zip file.")
    uploads.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(uploads).free < SPARE_BYTES:
        raise PlaceError("The disk is nearly full; delete old runs first.")
    target = _free(uploads, name or "my-images")
    received, budget = Received(target), _Budget()
    with staged_folder(target) as staged:
        for file in files:
            if file.suffix.lower() == ".zip":
                _unpack(file, staged, budget, received)
            else:
                with file.open("rb") as source:
                    _keep(source, PurePosixPath(file.name), staged, budget, received)
        if not received.files:
            reasons = "; ".join(received.left_out[:3])
            raise PlaceError(f"The upload holds no images ({reasons}). PNG, JPEG, WebP are fine.")
    return received


def copy_folder(source: Path, name: str, uploads: Path) -> Received:
    """A copy of the images and captions below ``source``, to be edited."""
    target = _free(uploads, name)
    received, budget = Received(target), _Budget()
    with staged_folder(target) as staged:
        for file in sorted(source.rglob("*")):
            if file.is_file() and not file.is_symlink():
                inside = PurePosixPath(file.relative_to(source).as_posix())
                with file.open("rb") as stream:
                    _keep(stream, inside, staged, budget, received)
    return received


def _free(uploads: Path, name: str) -> Path:
    base = slug(name)
    number, target = 1, uploads / base
    while target.exists():
        number += 1
        target = uploads / f"{base}-{number}"
    return target


def _unpack(file: Path, staged: Path, budget: _Budget, received: Received) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in _checked(archive):
                with archive.open(entry) as source:
                    limit = max(entry.compress_size * MAX_RATIO, RATIO_FREE_BYTES)
                    inside = PurePosixPath(entry.filename)
                    _keep(source, inside, staged, budget, received, limit)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise PlaceError(f"'{file.name}' cannot be unpacked ({error}); zip it again.") from error


def _checked(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The files of an archive, all of them looked at before the first is unpacked."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_FILES:
        raise PlaceError(f"The zip has more than {MAX_FILES} files; upload a smaller set.")
    for entry in entries:
        name = entry.filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
            raise PlaceError(f"The zip names a file outside itself ({name[:80]!r}); refused.")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise PlaceError(f"The zip holds a link ({name[:80]!r}); put the file itself into it.")
        if entry.flag_bits & 1:
            raise PlaceError("The zip has a password; make one without.")
        if entry.file_size > max(entry.compress_size * MAX_RATIO, RATIO_FREE_BYTES):
            raise PlaceError(f"'{name[:80]}' would unpack to a hundred times its size; refused.")
    return iter(entries)


def _keep(
    source: IO[bytes],
    inside: PurePosixPath,
    staged: Path,
    budget: _Budget,
    received: Received,
    limit: int = MAX_FILE_BYTES,
) -> None:
    """Copy one file if it is an image or a caption; counts what really arrives."""
    budget.one_more()
    suffix = inside.suffix.lower()
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
    if suffix not in KEPT or hidden:
        received.left_out.append(f"{inside.name}: not an image or a caption")
        return
    folders = [slug(part) for part in inside.parts[:-1]]
    target = staged.joinpath(*folders, f"{slug(inside.stem)}{suffix}")
    if target.exists():
        received.left_out.append(f"{inside.name}: a second file of that name")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with target.open("wb") as file:
        while block := source.read(_BLOCK):
            size += len(block)
            budget.spend(len(block), inside.name, size)
            if size > limit:
                raise PlaceError(f"'{inside.name}' is a zip bomb; refused.")
            file.write(block)
    received.files += 1
