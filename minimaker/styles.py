"""The example style folders: crisp stills with captions, like an artist's folder.

Each folder holds ``NN_colour_shape.png`` and ``NN_colour_shape.txt``, balanced over shapes and
colours. The captions name no motion and no style: the look is what a LoRA has to learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.mini.words import COLOURS, SHAPES, style_folder

from .looks import STYLES, StyleLook
from .world import random_still

COUNT = 96
SIZE = 128
_SEEDS = {"poster": 11, "ink": 12, "neon": 13}


def write_style_folder(
    folder: Path, look: StyleLook, count: int, size: int, seed: int
) -> list[Path]:
    """Draw ``count`` square stills of ``size`` pixels in ``look`` into ``folder``; their paths.

    The same arguments give the same pixels. Existing files of the same name are replaced.
    """
    if count < 1:
        raise ValueError(f"`count`={count} draws no picture; use 1 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])
    files = []
    for number, index in enumerate(order[:count]):
        shape, colour = pairs[index]
        scene = random_still(rng, shape=shape, colour=colour)
        file = folder / f"{number:02d}_{colour}_{shape}.png"
        Image.fromarray(look(scene, size)[0]).save(file, optimize=True)
        file.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
        files.append(file)
    return files


def regenerate(root: Path | None = None, names: tuple[str, ...] = tuple(_SEEDS)) -> list[Path]:
    """Draw the bundled folders again, into ``root/<name>`` or in place, replacing old files."""
    folders = [root / name if root else style_folder(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        for old in (*folder.glob("*.png"), *folder.glob("*.txt")):
            old.unlink()
        write_style_folder(folder, STYLES[name], COUNT, SIZE, _SEEDS[name])
    return folders
