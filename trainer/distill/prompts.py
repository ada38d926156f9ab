"""The prompts a run trains on, and what one frame of each shows.

A clip prompt names a motion that no still can show. The discriminator and the caption loss look at
single frames, so every prompt carries a second text for them: "a red circle moving left" is shown
as "a red circle".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOTION_PHRASES = (
    "moving slowly",
    "moving to the left",
    "moving to the right",
    "turning around",
    "camera slowly zooming in",
    "camera panning",
    "swaying in the wind",
    "walking",
)
"""Appended to image captions when a base model brings no prompts of its own."""


class PromptError(ValueError):
    """A prompts file that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Prompt:
    """``text`` is what the UNet reads, ``frame`` what a single frame of the clip shows."""

    text: str
    frame: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run, in a fixed order; ``conditional`` says whether frames are judged with
    their text.

    Judging with text is only fair when images and clips share their captions: otherwise the
    discriminator tells the two apart by the words and never looks at the picture.
    """

    prompts: tuple[Prompt, ...]
    conditional: bool

    def __len__(self) -> int:
        return len(self.prompts)

    def texts(self, rows: Sequence[int]) -> list[str]:
        return [self.prompts[row].text for row in rows]

    def frames(self, rows: Sequence[int]) -> list[str]:
        return [self.prompts[row].frame for row in rows]

    @property
    def hash(self) -> str:
        """SHA-256 over the clip prompts: the key under which trajectories are cached."""
        return hashlib.sha256("\n".join(p.text for p in self.prompts).encode()).hexdigest()


def read_prompts(file: Path) -> list[Prompt]:
    """Prompts from a UTF-8 text file, one a line; after a tab may follow what one frame shows.

    Empty lines and lines that begin with ``#`` are left out. Raises PromptError.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PromptError(f"'{file}' is not UTF-8 text ({error}); save it as UTF-8.") from error
    except OSError as error:
        raise PromptError(f"Cannot read the prompts file '{file}': {error.strerror}.") from error
    prompts = []
    for line in lines:
        text, _, frame = line.strip().partition("\t")
        if text and not text.startswith("#"):
            prompts.append(Prompt(text, frame.strip() or text))
    if not prompts:
        raise PromptError(f"'{file}' holds no prompt; write one prompt a line.")
    return prompts


def prompts_from_captions(captions: Sequence[str]) -> list[Prompt]:
    """Every distinct caption with every motion phrase."""
    distinct = [c for c in dict.fromkeys(captions) if c.strip()]
    if not distinct:
        raise PromptError(
            "The images have no captions and the base model brings no prompts; give a prompts "
            "file (`prompts`), one "
            "prompt a line, of what the clips should show."
        )
    return [
        Prompt(f"{caption}, {phrase}", caption) for caption in distinct for phrase in MOTION_PHRASES
    ]


def with_trigger(prompts: Sequence[Prompt], trigger: str) -> list[Prompt]:
    """The trigger word added to prompts that lack it.

    Frames keep their words, as the images' captions decide.
    """
    word = trigger.strip()
    if not word:
        return list(prompts)
    return [p if word in p.text else Prompt(f"{p.text}, {word}", p.frame) for p in prompts]


def build_prompts(
    file: Path | None, model_file: Path, captions: Sequence[str], trigger: str = ""
) -> PromptSet:
    """The user's file first, then the base model's own ``prompts.txt``, then the image captions."""
    if file is not None:
        prompts = read_prompts(file)
    elif model_file.is_file():
        prompts = read_prompts(model_file)
    else:
        prompts = prompts_from_captions(captions)
    frames = {p.frame for p in prompts}
    known = [caption.removesuffix(f", {trigger}") in frames for caption in captions]
    conditional = bool(known) and sum(known) >= len(known) / 2 and len(set(captions)) > 1
    return PromptSet(tuple(with_trigger(prompts, trigger)), conditional)
