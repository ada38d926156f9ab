"""True clips of the mini world: what a perfect model would make. No training ever sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.evaluate.bench import TrueClips
from trainer.mini.words import COLOURS, MOTIONS, SHAPES, parse_caption, style_folder
from trainer.paths import MINI

from .looks import STYLES, Look, public_video
from .world import random_scene

PROMPTS = MINI / "prompts.txt"
"""Every caption of the world."""
JUDGE = MINI / "judge"
FRAMENET = MINI / "framenet"


def true_clips(captions: Sequence[str], look: Look, seed: int) -> np.ndarray:
    """Uint8 clips (N, F, 64, 64, 3) of the mini world that show ``captions`` in ``look``.

    Raises ``ValueError`` for a caption that does not name a shape, a colour and a motion.
    """
    rng = np.random.default_rng((seed, 2))
    clips = []
    for text in captions:
        parsed = parse_caption(text)
        shape, colour, motion = parsed["shape"], parsed["colour"], parsed["motion"]
        if shape is None or colour is None or motion is None:
            raise ValueError(
                f"'{text}' names no clip of the mini world; use captions like 'a red star growing'."
            )
        scene = random_scene(
            rng, shape=SHAPES[shape], colour=COLOURS[colour], motion=MOTIONS[motion]
        )
        clips.append(look(scene, 64))
    return np.stack(clips)


def bundled_look(folder: Path) -> Look | None:
    """The look behind one of the bundled style folders, which can render true clips; else None."""
    for name, look in STYLES.items():
        if style_folder(name).resolve() == folder.resolve():
            return look
    return None


def in_look(look: Look) -> TrueClips:
    """The true clips in ``look``, as an evaluation asks for them."""
    return lambda captions, seed: true_clips(captions, look, seed)


def true_worlds(style: Path | None) -> dict[str, TrueClips]:
    """Public video, and the style of the folder ``style`` where it is a bundled one."""
    look = None if style is None else bundled_look(style)
    worlds = {"public video": in_look(public_video)}
    return worlds if look is None else {**worlds, "style video": in_look(look)}
