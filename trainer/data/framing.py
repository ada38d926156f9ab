"""Pure functions on decoded frames: black bars, cropping to a shape, shot cuts."""

from __future__ import annotations

import numpy as np
from PIL import Image

BLACK = 24  # of 255: the brightest channel of a pixel in a black bar stays at or under this

Box = tuple[int, int, int, int]


def find_bars(brightness: np.ndarray) -> Box | None:
    """The picture inside a letterbox or pillarbox as (left, top, right, bottom); None without bars.

    `brightness` (N, H, W) uint8 is the brightest channel of every pixel in N frames from all over
    the video. Bars are rows or columns that stay near black on both sides, next to a picture whose
    edge is brighter along most of its length in most frames: an object that moves on a black
    background has no bars. Where the two sides differ by more than 2 % (a dark scene meets the
    bar), the smaller one is cut on both.
    """
    brightest, usual = brightness.max(axis=0), np.median(brightness, axis=0)
    height, width = brightest.shape
    top, bottom = _bars(np.percentile(brightest, 99, axis=1))
    left, right = _bars(np.percentile(brightest, 99, axis=0))
    picture = usual[top : height - bottom, left : width - right]
    if top and not _is_edge(picture[0], picture[-1]):
        top = bottom = 0
    if left and not _is_edge(picture[:, 0], picture[:, -1]):
        left = right = 0
    return (left, top, width - right, height - bottom) if top or left else None


def fit(pixels: np.ndarray, height: int, width: int, box: Box | None, aspect: float) -> np.ndarray:
    """Cut the largest centred part of `box` that has the target's shape, and resize it (Lanczos).

    `pixels` (h, w, 3) uint8; `box` as from `find_bars`; `aspect` is the width of a source
    pixel over its height. Returns uint8 (height, width, 3).

    Raises ValueError if `box` does not lie inside the picture.
    """
    left, top, right, bottom = box or (0, 0, pixels.shape[1], pixels.shape[0])
    if left < 0 or top < 0 or bottom > pixels.shape[0] or right > pixels.shape[1]:
        raise ValueError(f"`box`={box} does not lie inside a picture of shape {pixels.shape}.")
    # Crop before resizing, or the filter would reach into the bars.
    image = Image.fromarray(pixels[top:bottom, left:right])
    scale = max(height / image.height, width / (image.width * aspect))
    cut_x, cut_y = width / (scale * aspect), height / scale
    x, y = max(0.0, (image.width - cut_x) / 2), max(0.0, (image.height - cut_y) / 2)
    region = (x, y, min(x + cut_x, image.width), min(y + cut_y, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=region))


def cut_strength(clip: np.ndarray, ratio: float = 4.0) -> float:
    """How much uint8 `clip` (F, H, W, 3) jumps once: its largest mean frame difference, 0 to 1.

    It is 0 if that is under `ratio` times the median difference: steady fast motion is no cut.
    """
    rows, columns = (max(1, size // 32) for size in clip.shape[1:3])
    small = clip[:, ::rows, ::columns].astype(np.float32) / 255
    steps = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    if len(steps) < 2 or steps.max() < ratio * float(np.median(steps)):
        return 0.0
    return float(steps.max())


def _bars(brightness: np.ndarray) -> tuple[int, int]:
    """Sizes of the black bars on both sides along one axis, (0, 0) if there are none."""
    bright = np.flatnonzero(brightness > BLACK)
    if len(bright) == 0:
        return 0, 0
    length = len(brightness)
    before, after = int(bright[0]), length - 1 - int(bright[-1])
    smallest = max(2, length // 50)
    if abs(before - after) > smallest:
        before = after = min(before, after)
    margin = 1 if length < 480 else 2  # codecs blur the edge of a bar
    if min(before, after) < smallest or length - before - after - 2 * margin < length // 5:
        return 0, 0
    return before + margin, after + margin


def _is_edge(first: np.ndarray, last: np.ndarray) -> bool:
    return bool(min(np.median(first), np.median(last)) > BLACK)
