"""Turns uploaded images and zip archives into a set, a folder of this page; also adds to, removes
from and deletes sets.

Harmful content is refused; everything else is kept, or listed with the reason.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from trainer.data.sidecars import find_sidecars, forget_listings
from trainer.files import disk_errors, remove_folder, staged_folder
from trainer.runs.folder import slug

from .arrivals import IMAGES, Arrival, Plan, Readable, plan
from .places import PlaceError

MIB = 2**20
MAX_FILES = 5000
MAX_FILE_BYTES = 256 * MIB
MAX_TOTAL_BYTES = 4096 * MIB
MAX_RATIO = 100
"""A zip entry that grows by more than this factor is a zip bomb: images hardly compress."""
RATIO_FREE_BYTES = 10 * MIB
SPARE_BYTES = 512 * MIB
"""What has to be left free on the disk."""
_BLOCK = 1 << 20
_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error)
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass
class Received:
    """The set, how many files came in, what was left out and what was changed, as "name: why"."""

    folder: Path
    files: int = 0
    images: int = 0
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Budget:
    """Counts real bytes, whatever the headers of an archive claim."""

    total: int = 0

    def spend(self, count: int, name: str, size: int, limit: int) -> None:
        self.total += count
        if size > MAX_FILE_BYTES:
            raise PlaceError(f"'{name}' is larger than {MAX_FILE_BYTES // MIB} MiB.")
        if self.total > MAX_TOTAL_BYTES:
            raise PlaceError(f"The upload is larger than {MAX_TOTAL_BYTES // MIB} MiB unpacked.")
        if size > limit:
            raise PlaceError(f"'{name}' is a zip bomb; refused.")


def receive(files: Sequence[Path], name: str, uploads: Path, into: Path | None = None) -> Received:
    """Images, captions and the contents of zips as a new set in ``uploads``, or added to ``into``.

    They appear when all of them are there. Raises `PlaceError` for zip bombs, paths that lead out
    of the archive, links, passwords, and uploads beyond the limits.
    """
    if not files:
        raise PlaceError("Nothing was uploaded; choose images or a zip file.")
    with ExitStack() as archives:
        arrivals: list[Arrival] = []
        for number, file in enumerate(files, 1):
            if file.suffix.lower() == ".zip":
                arrivals += _in_zip(file, number, archives)
            else:
                arrivals.append(_from_file(file, file.name))
        return _store(arrivals, name or "my-images", uploads, into)


def copy_folder(source: Path, name: str, uploads: Path) -> Received:
    """A copy of the images and captions below ``source``, to be edited."""
    arrivals = [
        _from_file(file, file.relative_to(source).as_posix())
        for file in sorted(source.rglob("*"))
        if file.is_file() and not file.is_symlink()
    ]
    return _store(arrivals, name, uploads, None)


def own_set(folder: Path, uploads: Path) -> Path:
    """``folder`` if it is a set of this page, which may be changed; `PlaceError` for any other."""
    real = folder.resolve()
    if real.parent != uploads.resolve() or real.name.startswith("."):
        raise PlaceError(
            f"'{folder.name}' was not made on this page. This page never adds or deletes files in "
            "other folders. Press 'Make an editable copy' first."
        )
    return real


def remove_image(image: Path, uploads: Path) -> None:
    """Delete an image of a set, and captions that belong to no other image."""
    real = image.resolve()
    inside = next((folder for folder in real.parents if folder.parent == uploads.resolve()), None)
    own_set(inside or real.parent, uploads)
    captions = find_sidecars(image)
    siblings = (path for path in image.parent.iterdir() if path.suffix.lower() in IMAGES)
    others = [path for path in siblings if path != image]
    shared = {caption for other in others for caption in find_sidecars(other)}
    image.unlink()
    for caption in captions:
        if caption not in shared:
            caption.unlink()
    forget_listings()


def delete_set(folder: Path, uploads: Path) -> None:
    """Delete a whole set."""
    remove_folder(own_set(folder, uploads))
    forget_listings()


def _from_file(file: Path, inside: str) -> Arrival:
    return Arrival(0, PurePosixPath(inside), lambda: file.open("rb"), MAX_FILE_BYTES)


def _store(arrivals: Sequence[Arrival], name: str, uploads: Path, into: Path | None) -> Received:
    if len(arrivals) > MAX_FILES:
        raise PlaceError(f"More than {MAX_FILES} files; upload a smaller set.")
    uploads.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(uploads).free < SPARE_BYTES:
        raise PlaceError("The disk is nearly full; delete old runs first.")
    target = _free(uploads, name) if into is None else own_set(into, uploads)
    made = plan(arrivals, into and target)
    if not made.images and not (into and made.copies):
        reasons = "; ".join((*made.left_out, *made.notes)[:3])
        raise PlaceError(f"The upload holds no images ({reasons}). Use PNG, JPEG or WebP.")
    if into is None:
        with staged_folder(target) as staged:
            _write(made, staged)
    else:
        with _moved_when_whole(target) as staged:
            _write(made, staged)
    forget_listings()
    files = len(made.copies) + len(made.texts)
    return Received(target, files, made.images, made.left_out, made.notes)


def _write(made: Plan, staged: Path) -> None:
    budget = _Budget()
    for arrival, place in made.copies:
        target = staged / place
        target.parent.mkdir(parents=True, exist_ok=True)
        size, name = 0, arrival.inside.name
        with arrival.open() as source, disk_errors(target), target.open("wb") as file:
            while block := source.read(_BLOCK):
                size += len(block)
                budget.spend(len(block), name, size, arrival.limit)
                file.write(block)
    for place, text in made.texts:
        target = staged / place
        with disk_errors(target):
            target.write_text(f"{text}\n", encoding="utf-8", newline="\n")


@contextmanager
def _moved_when_whole(target: Path) -> Iterator[Path]:
    """A folder whose files join those of ``target`` when the block ends well; names are free."""
    staged = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        for file in sorted(path for path in staged.rglob("*") if path.is_file()):
            place = target / file.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _free(uploads: Path, name: str) -> Path:
    base = slug(name)
    number, target = 1, uploads / base
    while target.exists():
        number += 1
        target = uploads / f"{base}-{number}"
    return target


def _in_zip(file: Path, number: int, archives: ExitStack) -> list[Arrival]:
    """The files of an archive, all of them looked at before the first is unpacked."""
    with _telling(file):
        archive = archives.enter_context(zipfile.ZipFile(file))
    entries = [entry for entry in archive.infolist() if not _name(entry).endswith("/")]
    if len(entries) > MAX_FILES:
        raise PlaceError(f"The zip has more than {MAX_FILES} files; upload a smaller set.")
    return [_checked(file, archive, entry, number) for entry in entries]


def _checked(file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, number: int) -> Arrival:
    name = _name(entry)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or _DRIVE.match(name):
        raise PlaceError(f"The zip names a file outside itself ({name[:80]!r}); refused.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise PlaceError(f"The zip holds a link ({name[:80]!r}); put the file itself into it.")
    if entry.flag_bits & 1:
        raise PlaceError("The zip has a password; make one without a password.")
    limit = max(entry.compress_size * MAX_RATIO, RATIO_FREE_BYTES)
    if entry.file_size > limit:
        raise PlaceError(f"'{name[:80]}' would unpack to a hundred times its size; refused.")
    return Arrival(number, path, _opener(file, archive, entry), limit)


def _opener(
    file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> Callable[[], AbstractContextManager[Readable]]:
    @contextmanager
    def opened() -> Iterator[Readable]:
        with _telling(file):
            stream = archive.open(entry)
        with stream:
            yield _Telling(stream, file)

    return opened


class _Telling:
    """A stream whose errors name the archive."""

    def __init__(self, stream: IO[bytes], file: Path) -> None:
        self._stream, self._file = stream, file

    def read(self, size: int = -1, /) -> bytes:
        with _telling(self._file):
            return self._stream.read(size)


@contextmanager
def _telling(file: Path) -> Iterator[None]:
    try:
        yield
    except _BAD_ZIP as error:
        raise PlaceError(
            f"'{file.name}' cannot be unpacked ({error}); zip the files again."
        ) from error


def _name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry as its system wrote it: with / between folders, and its umlauts.

    Windows' PowerShell writes backslashes. Names that are not marked as UTF-8 often are all the
    same, and `zipfile` reads them as the letters of DOS.
    """
    name = entry.filename
    if not entry.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = entry.filename
    return name.replace("\\", "/")
