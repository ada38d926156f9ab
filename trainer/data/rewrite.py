"""One change to many captions: add words at the start or end, replace words, add the trigger
word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..words import has_word
from .captions import TRIGGER_TOKEN, has_token
from .records import DataError

Kind = Literal["before", "after", "replace", "trigger"]
Change = tuple[Path, str, str]
"""(path, caption before, caption after)"""
_NO_COMMA = (" ", ",", ";", ":", ".", "\n")


@dataclass(frozen=True)
class Rewrite:
    """A change, called with a caption.

    "before" and "after" add `text` there, separated by a comma, unless it is already there.
    "replace" puts `new` in place of `text`, matched as whole words ("ink" is not in "pink") and
    ignoring case. "trigger" puts `[trigger]` before captions that have neither it nor the word
    `trigger`.

    Raises DataError if there is no text to put or to look for.
    """

    kind: Kind
    text: str = ""
    new: str = ""
    trigger: str = ""

    def __post_init__(self) -> None:
        if self.kind != "trigger" and not self.text.strip():
            what = "look for" if self.kind == "replace" else "add"
            raise DataError(f"There is nothing to {what}; enter the words first.")

    def __call__(self, caption: str) -> str:
        if self.kind == "trigger":
            there = has_token(caption) or has_word(caption, self.trigger)
            return caption if there else _joined(TRIGGER_TOKEN, caption)
        text = self.text.strip()
        if self.kind == "before":
            there = caption.casefold().startswith(text.casefold())
            return caption if there else _joined(self.text.lstrip(), caption)
        if self.kind == "after":
            there = caption.casefold().endswith(text.casefold())
            return caption if there else _joined(caption, self.text.rstrip())
        return self._replaced(caption, text)

    def _replaced(self, caption: str, text: str) -> str:
        begins = r"(?<!\w)" if re.match(r"\w", text) else ""
        ends = r"(?!\w)" if re.search(r"\w\Z", text) else ""
        found = re.compile(begins + re.escape(text) + ends, re.IGNORECASE)
        changed = found.sub(lambda _: self.new, caption)
        if changed == caption or self.new.strip():
            return changed
        changed = re.sub(r"[ \t]{2,}", " ", changed)
        return re.sub(r"\s*,(\s*,)+", ",", changed).strip(" ,")


def changes(captions: Sequence[tuple[Path, str]], rewrite: Rewrite) -> list[Change]:
    """Every caption that the rewrite changes; empty ones stay empty."""
    told = ((path, old, rewrite(old)) for path, old in captions if old.strip())
    return [(path, old, new) for path, old, new in told if new != old]


def _joined(first: str, second: str) -> str:
    apart = "" if first.endswith((" ", "\n")) or second.startswith(_NO_COMMA) else ", "
    if apart and first.endswith(_NO_COMMA):
        apart = " "
    return f"{first}{apart}{second}"
