"""Measures the watermark of the mini world's public video in clips; no style image has it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .words import SIZE

_GLYPHS = {  # 3x5 pixels, one row a digit, most significant bit left
    "S": (7, 4, 7, 1, 7),
    "T": (7, 2, 2, 2, 2),
    "O": (7, 5, 5, 5, 7),
    "C": (7, 4, 4, 4, 7),
    "K": (5, 5, 6, 5, 5),
}


def watermark(size: int = SIZE) -> np.ndarray:
    """Coverage (size, size) in 0..1 of the word that public_video stamps on every frame."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    for index, letter in enumerate("STOCK"):
        for row, bits in enumerate(_GLYPHS[letter]):
            for column in range(3):
                if bits >> (2 - column) & 1:
                    top, left = 50 + 2 * row, 13 + 8 * index + 2 * column
                    mask[top : top + 2, left : left + 2] = 1
    image = Image.fromarray((mask * 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255


def watermark_score(clips: np.ndarray) -> np.ndarray:
    """Correlation (N,) of the stamp with the mean frame of uint8 ``clips`` (N, F, H, W, 3).

    Over the stamp's own box, both without what is broader than a letter: 1 is the stamp alone, true
    public video has 0.92, true clips of a style 0 +- 0.1 each and below 0.04 on average. A
    correlation, so that a stamp on light ground counts as one on dark ground.
    """
    height, width = clips.shape[2:4]
    if height != width:
        raise ValueError(f"The mini world's frames are square, got {width} x {height} pixels.")
    stamp = watermark(height)
    places = np.argwhere(stamp > 0)
    pad = max(1, height // 32)
    (top, left), (bottom, right) = places.min(axis=0) - pad, places.max(axis=0) + pad + 1
    box = np.s_[max(top, 0) : bottom, max(left, 0) : right]
    wanted = _unit(_details(stamp)[box])
    frames = clips.mean(axis=(1, 4), dtype=np.float32)
    return np.array([(_unit(_details(frame)[box]) * wanted).sum() for frame in frames])


def _details(image: np.ndarray) -> np.ndarray:
    reach = max(1, len(image) // 16)
    wide = torch.from_numpy(image)[None, None]
    smooth = F.avg_pool2d(wide, 2 * reach + 1, 1, reach, count_include_pad=False)
    return (wide - smooth)[0, 0].numpy()


def _unit(patch: np.ndarray) -> np.ndarray:
    centred = patch - patch.mean()
    return centred / max(float(np.linalg.norm(centred)), 1e-6)
