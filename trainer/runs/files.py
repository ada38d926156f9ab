"""Atomic writes: a crash, a full disk or a power cut leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .guards import disk_errors

T = TypeVar("T")


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


def atomic_write(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` at once; its folder must exist. Raises `DiskFullError`."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_synced(staged, content)
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
