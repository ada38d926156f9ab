"""Small file helpers of the data package: hashing and natural order."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


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
