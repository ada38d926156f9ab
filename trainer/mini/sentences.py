"""What a caption of the mini world says: things that move, and the way the camera pans.

"a red circle moving left and a blue star growing, the camera pans right". Lists of words, one
function that writes such a sentence and one that reads it. ``minimaker`` draws what they say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "cross", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "circling",
    "bouncing",
)
CAMERAS = ("pans left", "pans right", "pans up", "pans down")
"""The way the camera turns: when it pans right, all that stands still drifts to the left."""
MOST_THINGS = 2
EXAMPLE = "a red circle moving left and a blue star growing, the camera pans right"


@dataclass(frozen=True)
class Thing:
    """One coloured shape; ``motion`` is None where it stands still.

    Raises ``ValueError`` for a word that the world does not have.
    """

    shape: str
    colour: str
    motion: str | None = None

    def __post_init__(self) -> None:
        _known("shape", self.shape, SHAPES)
        _known("colour", self.colour, COLOURS)
        if self.motion is not None:
            _known("motion", self.motion, MOTIONS)

    @property
    def words(self) -> str:
        """``Thing("star", "red", "growing").words`` is "a red star growing"."""
        return f"a {self.colour} {self.shape}" + (f" {self.motion}" if self.motion else "")

    @property
    def still(self) -> Thing:
        """The same thing as one frame shows it: without its motion."""
        return Thing(self.shape, self.colour)


def sentence(things: Sequence[Thing], camera: str | None = None) -> str:
    """The caption of a clip with one or two ``things`` and the ``camera``'s pan.

    Raises ``ValueError`` for no thing, for more than two, and for an unknown pan.
    """
    if not 1 <= len(things) <= MOST_THINGS:
        raise ValueError(f"A sentence has one or two things, got {len(things)}.")
    text = " and ".join(thing.words for thing in things)
    if camera is None:
        return text
    _known("camera", camera, CAMERAS)
    return f"{text}, the camera {camera}"


def parse_sentence(text: str) -> tuple[tuple[Thing, ...], str | None]:
    """Things and camera pan that ``text`` names; words that the world does not know are skipped.

    A motion belongs to the nearest thing before it. Raises ``ValueError`` where no thing, or more
    than two, are named, or a thing has two motions; the message says what to write.
    """
    named = [match.groupdict() for match in _CLAUSE.finditer(text.lower())]
    things: list[Thing] = []
    camera = None
    for found in named:
        if found["shape"]:
            things.append(Thing(found["shape"], found["colour"]))
        elif found["camera"]:
            if camera is not None:
                raise ValueError(_advice(text, "lets the camera pan twice"))
            camera = " ".join(found["camera"].split())
        elif things:
            last, motion = things[-1], " ".join(found["motion"].split())
            if last.motion is not None:
                raise ValueError(_advice(text, f"lets the {last.shape} move in two ways"))
            things[-1] = Thing(last.shape, last.colour, motion)
    if not things:
        raise ValueError(_advice(text, "names no thing of the mini world"))
    if len(things) > MOST_THINGS:
        raise ValueError(_advice(text, f"names {len(things)} things, the world has one or two"))
    return tuple(things), camera


def still_sentence(text: str) -> str:
    """What one frame of the clip ``text`` shows: the sentence without motions and camera."""
    return sentence([thing.still for thing in parse_sentence(text)[0]])


def _any_of(words: Sequence[str]) -> str:
    return "|".join(word.replace(" ", r"\s+") for word in words)


_CLAUSE = re.compile(
    rf"\b(?P<colour>{_any_of(COLOURS)})\s+(?P<shape>{_any_of(SHAPES)})\b"
    rf"|\bcamera\s+(?P<camera>{_any_of(CAMERAS)})\b"
    rf"|\b(?P<motion>{_any_of(MOTIONS)})\b"
)


def _known(kind: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise ValueError(f"The mini world has no {kind} '{word}'; use one of {', '.join(words)}.")


def _advice(text: str, problem: str) -> str:
    return (
        f"'{text}' {problem}; write a colour ({', '.join(COLOURS)}), a shape "
        f"({', '.join(SHAPES)}) and a motion ({', '.join(MOTIONS)}), as in '{EXAMPLE}'."
    )
