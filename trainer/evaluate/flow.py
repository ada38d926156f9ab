"""How much moves in a clip, by dense optical flow without weights (DIS, Kroeger et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOVING_PIXELS = 0.5
"""A pixel counts as moving from this many pixels per frame on."""
SMALL = 128
"""Frames lower than this are enlarged for the search: DIS compares patches of 8 pixels."""


CELLS = 12
"""Cells along the shorter side, in which the flow of neighbouring places is averaged."""


@dataclass(frozen=True)
class Flow:
    """Of each clip: ``magnitude`` (N,) mean pixels per frame, ``moving`` (N,) share of pixels, and
    ``field`` (N, F - 1, h, w, 2), the mean flow (x, y) in pixels of cells, the shorter side 12.
    """

    magnitude: np.ndarray
    moving: np.ndarray
    field: np.ndarray

    def agreement(self, other: Flow) -> np.ndarray:
        """(N,) whether the same moves the same way at the same time, in -1 .. 1: the cosine of both
        clips' fields, 0 where one of them stands still.

        It does not ask how fast. Clips of one scene drawn in two looks have .5 to .75, of two
        scenes 0, whereas their magnitudes differ by up to three times with outline and contrast.
        """
        ours, theirs = (f.field.reshape(len(f.field), -1) for f in (self, other))
        sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return (ours * theirs).sum(axis=1) / np.maximum(sizes, 1e-6)


def clip_flow(clips: np.ndarray) -> Flow:
    """Optical flow between all neighbouring frames of uint8 ``clips`` (N, F, H, W, 3).

    Raises ``ImportError`` without OpenCV and ``ValueError`` for other input.
    """
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or clips.shape[1] < 2:
        raise ValueError(
            "`clips` must be uint8 (clips, frames, height, width, 3) with two frames or more, got "
            f"{clips.dtype} {tuple(clips.shape)}."
        )
    cv2 = _opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = clips.shape[2:4]
    factor = max(1, -(-SMALL // min(height, width)))
    magnitude, moving, field = np.zeros(len(clips)), np.zeros(len(clips)), []
    cells = tuple(max(1, round(CELLS * side / min(height, width))) for side in (width, height))
    for index, clip in enumerate(clips):
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        if factor > 1:
            size = (width * factor, height * factor)
            grey = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in grey]
        sizes, coarse = [], []
        for before, after in zip(grey, grey[1:], strict=False):
            flow = search.calc(before, after, None) / factor
            sizes.append(np.linalg.norm(flow, axis=2))
            coarse.append(cv2.resize(flow, cells, interpolation=cv2.INTER_AREA))
        magnitude[index] = np.mean(sizes)
        moving[index] = np.mean([size >= MOVING_PIXELS for size in sizes])
        field.append(np.stack(coarse))
    return Flow(magnitude, moving, np.stack(field))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Optical flow needs OpenCV; install it with `pip install opencv-python-headless`."
        ) from error
    return cv2
