"""How much moves in a clip, by dense optical flow without weights (DIS, Kroeger et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOVING_PIXELS = 0.5
"""A pixel counts as moving from this many pixels per frame on."""
SMALL = 128
"""Frames lower than this are enlarged for the search: DIS compares patches of 8 pixels."""


@dataclass(frozen=True)
class Flow:
    """Of each clip: ``magnitude`` (N,) mean pixels per frame, ``moving`` (N,) share of pixels."""

    magnitude: np.ndarray
    moving: np.ndarray


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
    magnitude, moving = np.zeros(len(clips)), np.zeros(len(clips))
    for index, clip in enumerate(clips):
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        if factor > 1:
            size = (width * factor, height * factor)
            grey = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in grey]
        steps = [
            np.linalg.norm(search.calc(before, after, None), axis=2) / factor
            for before, after in zip(grey, grey[1:], strict=False)
        ]
        magnitude[index] = np.mean(steps)
        moving[index] = np.mean([step >= MOVING_PIXELS for step in steps])
    return Flow(magnitude, moving)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Optical flow needs OpenCV; install it with `pip install opencv-python-headless`."
        ) from error
    return cv2
