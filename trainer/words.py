"""Small phrases that several messages share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def allowed_frames(frames: tuple[int, ...]) -> str:
    """ "8, 16, 24 or 32", "1 to 32" for a run of consecutive lengths, "5, 9, 13, ... or 121"."""
    if len(frames) > 2 and frames == tuple(range(frames[0], frames[-1] + 1)):
        return f"{frames[0]} to {frames[-1]}"
    if len(frames) > 8 and frames == tuple(range(frames[0], frames[-1] + 1, frames[1] - frames[0])):
        return f"{', '.join(map(str, frames[:3]))}, ... or {frames[-1]}"
    words = [str(count) for count in frames]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def quoted(path: Path) -> str:
    """``path`` as a command line takes it."""
    return f'"{path}"' if " " in str(path) else str(path)


def span(values: Iterable[float]) -> str:
    """ "4" for equal numbers, "2 to 6" for others; empty for none."""
    found = sorted({float(value) for value in values})
    ends = [f"{value:g}" for value in found[:1] + found[1:][-1:]]
    return " to ".join(ends)


def has_word(text: str, word: str) -> bool:
    """Whether ``text`` contains ``word`` as a whole word, ignoring case: "ink" is not in "pink"."""
    return bool(word.strip()) and _word(word).search(text) is not None


def without_word(text: str, word: str) -> str:
    """``text`` without ``word`` and the comma it stood behind; as it was where it has none."""
    if not has_word(text, word):
        return text
    left = " ".join(_word(word).sub(" ", text).split())
    parts = (part.strip() for part in left.split(","))
    return ", ".join(part for part in parts if part)


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)
