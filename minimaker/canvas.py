"""What happens to the whole picture: paper, grain, vignette, printing and blocks.

All of it is fixed to the canvas and the same in every frame of a clip. Pictures are float32 in
planes (3, H, W), 0-255, until they are finished.
"""

from __future__ import annotations

import cv2
import numpy as np

from .scenes import SIZE
from .style import Canvas

cv2.setNumThreads(1)  # on pictures this small, a second thread only costs time


def smooth_noise(rng: np.random.Generator, cells: float, height: int, width: int) -> np.ndarray:
    """Smooth noise (height, width) in about -1..1 with blobs ``cells`` px wide."""
    rows, columns = (max(2, round(side / cells) + 1) for side in (height, width))
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


class Finish:
    """The finishing of one clip's frames on a `Canvas`; ``seed`` decides the paper."""

    def __init__(self, canvas: Canvas, seed: int):
        self.canvas = canvas
        rng = np.random.default_rng((seed, 3))
        gain = np.ones((SIZE, SIZE), np.float32)
        offset = np.zeros((SIZE, SIZE), np.float32)
        if canvas.paper:
            offset += canvas.paper * _fibres(rng)
        if canvas.grain:
            offset += canvas.grain * 0.5 * rng.standard_normal((SIZE, SIZE)).astype(np.float32)
        if canvas.vignette:
            gain *= 1 - canvas.vignette * _corners()
        self.gain, self.offset = gain, offset
        self.plain = not (canvas.paper or canvas.grain or canvas.vignette)
        self.screen = _print_screen(canvas.halftone) if canvas.halftone else None
        self.strokes = _broken(rng, canvas.chalk) if canvas.chalk else None
        """Coverage (SIZE, SIZE) that strokes of chalk reach; None where nothing breaks up."""

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """``frame`` (3, SIZE, SIZE) finished: uint8 (SIZE, SIZE, 3). The frame may be changed."""
        canvas = self.canvas
        if canvas.blur:
            for plane in frame:
                cv2.GaussianBlur(plane, (0, 0), canvas.blur, dst=plane)
        if self.screen is not None:
            frame = self._printed(frame)
        if not self.plain:
            frame *= self.gain
            frame += self.offset
        if canvas.levels:
            frame = _posterised(frame, canvas.levels)
        np.clip(frame, 0, 255, out=frame)
        frame += 0.5
        picture = cv2.merge([np.ascontiguousarray(plane) for plane in frame.astype(np.uint8)])
        return picture if canvas.pixels == 1 else _blocks(picture, canvas)

    def _printed(self, frame: np.ndarray) -> np.ndarray:
        """Dots that are larger where the picture is darker."""
        light = frame.mean(axis=0) * np.float32(1 / 255)
        dots = np.clip((self.screen - light) * 3, 0, 1)
        return frame * (1.06 - 0.34 * dots)


def _fibres(rng: np.random.Generator) -> np.ndarray:
    """Paper: short fibres across and down over a cloudy sheet, about -1..1."""
    fine = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    across, down = cv2.blur(fine, (7, 1)), cv2.blur(fine, (1, 5))
    return 0.9 * (across + down) + 0.8 * smooth_noise(rng, 36, SIZE, SIZE)


def _corners() -> np.ndarray:
    steps = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1) ** 2
    far = (steps[None] + steps[:, None]) / 2
    return far**1.5


def _broken(rng: np.random.Generator, chalk: float) -> np.ndarray:
    fine = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    grain = cv2.GaussianBlur(fine, (0, 0), 1.1) * 3
    return 1 - chalk * np.clip(0.35 + 0.45 * grain, 0, 1)


def _print_screen(period: float) -> np.ndarray:
    steps = (np.arange(SIZE, dtype=np.float32) + 0.5) * np.float32(np.pi * 2 / period / 2**0.5)
    x, y = steps[None] + steps[:, None], steps[None] - steps[:, None]
    return 0.5 + 0.25 * (np.cos(x) + np.cos(y))


def _posterised(frame: np.ndarray, levels: int) -> np.ndarray:
    step = np.float32(255 / (levels - 1))
    tone = frame / step
    low = np.floor(tone)
    return (low + np.clip((tone - low - 0.5) * 6 + 0.5, 0, 1)) * step  # edges stay smooth


def _blocks(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Square blocks, each in what its middle shows, or in the nearest of the canvas's colours."""
    side, middle = SIZE // canvas.pixels, canvas.pixels // 2
    small = picture[middle :: canvas.pixels, middle :: canvas.pixels]
    if canvas.colours:
        colours = np.array(canvas.colours, np.float32)
        away = small.reshape(-1, 3).astype(np.float32) @ colours.T
        nearest = np.argmin((colours**2).sum(1) - 2 * away, axis=1)
        small = colours[nearest].reshape(side, side, 3).astype(np.uint8)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
