"""Reads a base model's ``mcm.json``: numbers and names, never paths.

The file comes with a downloaded model, so it is checked like any other input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .weights import ModelError, read_json

FILE = "mcm.json"
MOST_LETTERS = 200
MOST_WORDS = 100
SIDE = (8, 8192)
LIMITS = {
    "frames": (1, 1024), "height": SIDE, "width": SIDE, "fps": (1, 240),
    "tokens": (8, 512), "shift": (1, 20),
}  # fmt: skip


def read_about(folder: Path, **otherwise: Any) -> dict[str, Any]:
    """``otherwise``, overridden by the entries of ``folder``'s file.

    ``name``, ``licence`` and ``for_trying_out`` are one line of text, ``subjects`` a list of words,
    ``frames``, ``height``, ``width`` (pixels), ``fps``, ``tokens`` (that a prompt is padded to) and
    ``shift`` (of a flow's levels) whole numbers within `LIMITS`. Raises ModelError naming the
    entry that is not.
    """
    file = folder / FILE
    found = read_json(file) if file.is_file() else {}
    told = {key: found[key] for key in otherwise if key in found}
    for key, value in told.items():
        if key in LIMITS:
            _check_number(file, key, value)
        elif key == "subjects":
            _check_words(file, key, value)
        else:
            _check_text(file, key, value)
    return {**otherwise, **told}


def _check_number(file: Path, key: str, value: object) -> None:
    low, high = LIMITS[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(
            f"`{key}`={value!r} in '{file}' must be a whole number from {low} to {high}. Correct "
            "it, or download the model again."
        )


def _check_words(file: Path, key: str, value: object) -> None:
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_WORDS:
        raise ModelError(
            f"`{key}`={str(value)[:60]!r} in '{file}' must be a list of 2 to "
            f"{MOST_WORDS} words. Correct it, or download the model again."
        )
    for word in value:
        _check_text(file, key, word)


def _check_text(file: Path, key: str, value: object) -> None:
    line = isinstance(value, str) and value.strip() and value.isprintable()
    if not line or len(str(value)) > MOST_LETTERS:
        raise ModelError(
            f"`{key}`={str(value)[:60]!r} in '{file}' must be one line of at most {MOST_LETTERS} "
            "letters. Correct it, or download the model again."
        )
    if key == "name" and any(mark in str(value) for mark in "/\\"):
        raise ModelError(f"`{key}`={value!r} in '{file}' must be a name, not a path. Correct it.")
