"""Files written so that a crash, a full disk or a power cut leaves the old or the new, never half;
and their hashes and natural order.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
GIB = 2**30
# EFBIG: a file system with small files (FAT32: 4 GiB) or a quota on file size.
_FULL = {getattr(errno, name, errno.ENOSPC) for name in ("ENOSPC", "EFBIG", "EDQUOT")}

_FULL_PHRASES = ("No space left on device", "(os error 28)", "(os error 112)")
"""Messages of libraries in other languages; 112 is Windows' error number."""
PIECES, PIECE = 256, 1 << 16
"""How many pieces of a file make its fingerprint, and their bytes."""


class DiskFullError(OSError):
    """There is not enough disk space; existing files are not damaged."""


def require_disk(path: Path, needed: int) -> None:
    """Raise `DiskFullError` unless ``needed`` bytes are free where ``path`` is or will be."""
    place = Path(path).expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskFullError(
            errno.ENOSPC,
            f"{needed / GIB:.2f} GiB are needed and {free / GIB:.2f} GiB are free; delete old runs "
            "or checkpoints, or choose a run folder on another disk",
            str(path),
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's error for a full disk, quota or file size limit into `DiskFullError`."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            error.errno,
            f"the disk is full ({error.strerror}); free some space, then resume: earlier "
            "checkpoints are intact",
            str(path),
        ) from error


def disk_full(error: BaseException, path: Path) -> DiskFullError | None:
    """The `DiskFullError` that ``error``, raised by whatever library wrote below ``path``, comes
    from; None where it has another cause.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, DiskFullError):
            return found
        number = found.errno if isinstance(found, OSError) else None
        if number in _FULL or any(phrase in str(found) for phrase in _FULL_PHRASES):
            return DiskFullError(
                errno.ENOSPC,
                "the disk is full; free some space, then resume: earlier checkpoints are intact",
                str(path),
            )
        found = found.__cause__ or found.__context__
    return None


def retry_denied(action: Callable[[], T], tries: int = 10, pause: float = 0.05) -> T:
    """Call ``action`` until it succeeds; raises the last PermissionError.

    On Windows a file that a viewer or a virus scanner has open for a moment cannot be replaced or
    read.
    """
    for left in reversed(range(tries)):
        try:
            return action()
        except PermissionError:
            if not left:
                raise
            time.sleep(pause)
    raise ValueError(f"`tries`={tries} is not allowed; use 1 or more.")


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut (Windows has no such call)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, content: bytes) -> None:
    """Write ``content`` and wait until it is on the disk; `DiskFullError` when it does not fit."""
    with disk_errors(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def atomic_write(path: Path, content: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Replace ``path`` by ``content`` at once; its folder must exist. Raises `DiskFullError`.

    ``check`` sees the finished temporary file, which then ends like ``path``; when it raises,
    ``path`` is left as it was.
    """
    ending = "" if check is None else path.suffix
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp{ending}")
    try:
        write_synced(staged, content)
        if check is not None:
            check(staged)
        retry_denied(lambda: os.replace(staged, path))
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            staged.unlink()


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, renamed to it when the block ends well, else removed.

    An older ``target`` is replaced; it is set aside first, and `restore_set_aside` brings it back
    after a crash between the two renames.
    """
    staged = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    staged.mkdir(parents=True)
    try:
        yield staged
        with disk_errors(target):
            sync_folder(staged)
            aside = target.with_name(f".old-{target.name}")
            if target.exists():
                retry_denied(lambda: os.replace(target, aside))
            retry_denied(lambda: os.replace(staged, target))
            sync_folder(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def restore_set_aside(parent: Path) -> None:
    """Restore what a killed `staged_folder` had set aside, and remove its leftovers."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        if entry.name.startswith(".old-"):
            target = parent / entry.name.removeprefix(".old-")
            if target.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.replace(entry, target)
        elif entry.name.startswith(".tmp-"):
            shutil.rmtree(entry, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a crash leaves no partial folder under its name."""
    doomed = folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}")
    retry_denied(lambda: os.replace(folder, doomed))
    shutil.rmtree(doomed, ignore_errors=True)


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts `2.png` before `10.png`, ignoring case; the exact name decides between equals."""
    parts = re.split(r"(\d+)", str(path).casefold())
    numbers = ((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)
    return tuple(numbers), str(path)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises OSError if the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_fingerprint(files: Sequence[Path]) -> str:
    """sha256 in hex over size, beginning, end and evenly spread pieces of ``files``: it tells other
    weights of the same shapes apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for place in range(PIECES):
                stream.seek(max(0, size - PIECE) * place // (PIECES - 1))
                digest.update(stream.read(PIECE))
    return digest.hexdigest()
