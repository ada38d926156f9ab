"""Some of a run's own style images, small, to be shown beside its clips."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from trainer.data.images import SUFFIXES, ImageRecord
from trainer.files import file_sha256, natural_key
from trainer.runs.folder import Run

from .data import Scans
from .places import PlaceError
from .site import Site

COUNT = 6
MOST_TRIED = 4 * COUNT
"""So many files are tried for `COUNT` pictures; the others cannot be opened."""


def reference_images(site: Site, run: Run) -> list[Path]:
    """Thumbnails of at most `COUNT` style images, spread over the folder; none where it is gone or
    outside the folders that the page may read.
    """
    images = run.config().images
    if images is None:
        return []
    try:
        folder = site.places.folder(str(images))
    except PlaceError:
        return []
    return list(_thumbnails(site.scans, folder, folder.stat().st_mtime_ns))


@lru_cache(maxsize=16)
def _thumbnails(scans: Scans, folder: Path, changed: int) -> tuple[Path, ...]:
    """Looked for again when the folder has ``changed``; the page asks every second."""
    made: list[Path] = []
    for file in _spread(_files(folder)):
        try:
            record = ImageRecord(path=file, status="used", sha256=file_sha256(file))
            made.append(scans.thumbnail(record))
        except (OSError, ValueError):  # the Data tab says what is wrong with it
            continue
        if len(made) == COUNT:
            break
    return tuple(made)


def _files(folder: Path) -> list[Path]:
    """Image files below ``folder``, in natural order; hidden ones and links are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place) / name for name in names if not name.startswith("."))
        found += [p for p in paths if p.suffix.lower() in SUFFIXES and not p.is_symlink()]
    return sorted(found, key=natural_key)


def _spread(files: list[Path]) -> list[Path]:
    """The files to try: `COUNT` far apart, then others between them."""
    if len(files) <= COUNT:
        return files
    first = [files[index * (len(files) - 1) // (COUNT - 1)] for index in range(COUNT)]
    others = [file for file in files if file not in first]
    return [*first, *others[: MOST_TRIED - COUNT]]
