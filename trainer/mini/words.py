"""The mini world in words: one coloured shape that moves, as in "a red star growing".

``minimaker``, beside this package, draws this world and trains the networks that look at it.
"""

from __future__ import annotations

from pathlib import Path

from ..paths import MINI
from .sentences import COLOURS, MOTIONS, SHAPES

SIZE = 64
"""Side of a frame in pixels, which the networks were trained at."""
LOOKS = ("public", "poster", "ink", "neon", "other")
"""Looks that the judge distinguishes: public video, the three example styles, any other."""
STYLES = LOOKS[1:4]
"""The example styles, each a folder of captioned images."""


def style_folder(name: str) -> Path:
    """Folder of one of the `STYLES`."""
    if name not in STYLES:
        raise ValueError(f"`style`={name!r} is not bundled; use one of {', '.join(STYLES)}.")
    return MINI / "styles" / name


def parse_caption(text: str) -> dict[str, int | None]:
    """Indices of shape, colour and motion named in ``text``.

    None where a word of the world is missing.
    """

    def find(words: tuple[str, ...]) -> int | None:
        return next((i for i, word in enumerate(words) if word in text), None)

    return {"shape": find(SHAPES), "colour": find(COLOURS), "motion": find(MOTIONS)}
