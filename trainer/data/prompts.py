"""The prompts a run trains on, and what one frame of each shows.

A clip prompt names a motion, which a still image cannot show. The discriminator and the caption
loss look at single frames, so every prompt carries a second text for them: "a red circle moving
left" is shown as "a red circle".

Only the student gets the trigger word. The teacher does not know it, so its clips are made without
it (and serve all later styles). Frames are judged without it, because otherwise the discriminator
could distinguish images from clips by that word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..words import has_word, without_word
from .captions import insert_trigger

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
    """``text`` is what the student reads, ``frame`` what a single frame of the clip shows, and
    ``teacher`` what the teacher's clip is made from: ``text`` without the trigger word.
    """

    text: str
    frame: str
    teacher: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run, in a fixed order; ``conditional`` says whether frames are judged with
    their text, and ``trigger`` is the word that is left out of it.

    Judging with text is only fair when images and clips share their captions: otherwise the
    discriminator distinguishes the two by their words and ignores the picture.
    """

    prompts: tuple[Prompt, ...]
    conditional: bool
    trigger: str = ""

    def __len__(self) -> int:
        return len(self.prompts)

    def texts(self, rows: Sequence[int]) -> list[str]:
        return [self.prompts[row].text for row in rows]

    def frames(self, rows: Sequence[int]) -> list[str]:
        return [self.prompts[row].frame for row in rows]

    def judged(self, captions: Sequence[str]) -> list[str]:
        """Captions of style images as frames are judged: without the trigger word."""
        return [without_word(caption, self.trigger) for caption in captions]


def read_prompts(file: Path) -> list[Prompt]:
    """Prompts from a UTF-8 text file, one per line; after a tab may follow what one frame shows.

    Empty lines and lines that begin with ``#`` are left out; ``[trigger]`` stays as it is. Raises
    PromptError.
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
            text = text.strip()
            prompts.append(Prompt(text, frame.strip() or text, text))
    if not prompts:
        raise PromptError(f"'{file}' has no prompts; write one prompt per line.")
    return prompts


def prompts_from_captions(captions: Sequence[str]) -> list[Prompt]:
    """Every distinct caption with every motion phrase."""
    distinct = [c for c in dict.fromkeys(captions) if c.strip()]
    if not distinct:
        raise PromptError(
            "The images have no captions and the base model has no prompts of its own. Set "
            "`prompts` to a text file with one prompt per line that says what the clips should "
            "show."
        )
    texts = [(f"{caption}, {phrase}", caption) for caption in distinct for phrase in MOTION_PHRASES]
    return [Prompt(text, caption, text) for text, caption in texts]


def with_trigger(prompts: Sequence[Prompt], trigger: str) -> list[Prompt]:
    """``prompts`` with the trigger word where ``[trigger]`` stands, else at the end of those that
    lack it; frames and what the teacher reads without the word.
    """
    word = trigger.strip()
    return [
        Prompt(_called(p.text, word), _plain(p.frame, word), _plain(p.teacher, word))
        for p in prompts
    ]


def _called(text: str, word: str) -> str:
    placed = insert_trigger(text, word)
    return placed if not word or has_word(placed, word) else f"{placed}, {word}"


def _plain(text: str, word: str) -> str:
    return without_word(insert_trigger(text, ""), word)


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
    prompts = with_trigger(prompts, trigger)
    frames = {p.frame for p in prompts}
    shown = [_plain(caption, trigger) for caption in captions]
    known = [bool(caption) and caption in frames for caption in shown]
    conditional = bool(known) and sum(known) >= len(known) / 2 and len(set(shown)) > 1
    return PromptSet(tuple(prompts), conditional, trigger.strip())
