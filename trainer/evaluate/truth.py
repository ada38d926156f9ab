"""What a student is measured against: prompts, true clips of the mini world, style images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageSet, scan_images
from ..media import to_frames
from ..mini.looks import STYLES, Look
from ..mini.styles import style_folder
from ..mini.world import COLOURS, MOTIONS, SHAPES, all_captions, parse_caption, random_scene

MAX_STYLE_IMAGES = 1000


def read_prompts(file: Path) -> list[str]:
    """The prompts of a UTF-8 text file, one a line; empty and # lines are left out.

    Raises ``ValueError`` when the file cannot be read or holds none.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Cannot read the prompts '{file}': {error}. Give a UTF-8 text file, one prompt a line."
        ) from error
    # A training prompts file may say after a tab what a single frame shows; here clips are made.
    prompts = [line.split("\t")[0].rstrip() for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"'{file}' holds no prompts; write one a line.")
    return prompts


def draw_prompts(count: int, seed: int, file: Path | None = None) -> list[str]:
    """``count`` prompts in an order that ``seed`` decides; all are used before one comes again.

    From ``file``, or the captions of the mini world when it is None.
    """
    if count < 2:
        raise ValueError(f"`count`={count} is too few to measure; use 2 or more (64 is usual).")
    pool = all_captions() if file is None else read_prompts(file)
    rng = np.random.default_rng((seed, 1))
    rounds = [rng.permutation(len(pool)) for _ in range(-(-count // len(pool)))]
    return [pool[index] for index in np.concatenate(rounds)[:count]]


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


def style_pixels(folder: Path, height: int, width: int) -> Tensor:
    """The images of a style folder, centre-cropped: (N, 3, H, W) float in [-1, 1]; at most 1000.

    Errors as ``trainer.data.images.scan_images``.
    """
    images = ImageSet(scan_images(folder, min_side=1), height, width)
    return images.batch(range(min(len(images), MAX_STYLE_IMAGES)))[0]


def bundled_look(folder: Path) -> Look | None:
    """The look behind one of the bundled style folders, which can render true clips; else None."""
    for name, look in STYLES.items():
        if style_folder(name).resolve() == folder.resolve():
            return look
    return None


def as_pixels(clips: np.ndarray) -> Tensor:
    """Uint8 (N, F, H, W, 3) to float (N, 3, F, H, W) in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def as_frames(pixels: Tensor) -> np.ndarray:
    """Float (N, 3, F, H, W) in [-1, 1] to uint8 (N, F, H, W, 3)."""
    return np.stack([to_frames(clip) for clip in pixels])
