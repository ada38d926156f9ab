"""What a student is measured with: prompts and style images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageSet, scan_images
from ..media import to_frames

MAX_STYLE_IMAGES = 1000


def read_prompts(file: Path) -> list[str]:
    """The prompts of a UTF-8 text file, one per line; empty and # lines are left out.

    Raises ``ValueError`` when the file cannot be read or holds none.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Cannot read the prompts '{file}': {error}. Use a UTF-8 text file with one prompt per "
            "line."
        ) from error
    # A training prompts file may say after a tab what a single frame shows; here clips are made.
    prompts = [line.split("\t")[0].rstrip() for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"'{file}' has no prompts; write one per line.")
    return prompts


def draw_prompts(count: int, seed: int, file: Path) -> list[str]:
    """``count`` prompts of ``file`` in an order that ``seed`` decides; all are used before one
    comes again.
    """
    if count < 2:
        raise ValueError(f"`count`={count} is too few to measure; use 2 or more (64 is usual).")
    pool = read_prompts(file)
    rng = np.random.default_rng((seed, 1))
    rounds = [rng.permutation(len(pool)) for _ in range(-(-count // len(pool)))]
    return [pool[index] for index in np.concatenate(rounds)[:count]]


def style_pixels(folder: Path, height: int, width: int) -> Tensor:
    """The images of a style folder, centre-cropped: (N, 3, H, W) float in [-1, 1]; at most 1000.

    Errors as ``trainer.data.images.scan_images``.
    """
    images = ImageSet(scan_images(folder, min_side=1), height, width)
    return images.batch(range(min(len(images), MAX_STYLE_IMAGES)))[0]


def as_pixels(clips: np.ndarray) -> Tensor:
    """Uint8 (N, F, H, W, 3) to float (N, 3, F, H, W) in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def as_frames(pixels: Tensor) -> np.ndarray:
    """Float (N, 3, F, H, W) in [-1, 1] to uint8 (N, F, H, W, 3)."""
    return np.stack([to_frames(clip) for clip in pixels])
