"""Poor public video, as motion data sets are made of, and the clips that networks train on."""

from __future__ import annotations

import colorsys
from functools import cache

import cv2
import numpy as np

from trainer.mini.watermark import watermark

from .gallery import random_style
from .paint import paint
from .scenes import FRAMES, SIZE, Scene, random_scene
from .style import PLAIN, Canvas, Colour, Fill, Ground, Shadow, Style, colour

STAMP = 0.42
"""How much the stamp hides."""
NOISE = 2.4
"""Standard deviation of the noise, of 255."""
QUALITY = 45
"""JPEG quality of a frame."""
PUBLIC, OTHER = "public", "other"
"""The names of looks that training clips have."""


def public_video(scene: Scene) -> np.ndarray:
    """The poor look of public video: (F, 128, 128, 3) uint8, stamped, noisy and compressed."""
    rng = np.random.default_rng((scene.seed, 4))
    clean = paint(scene, _dull_style(rng))
    stamp = _stamp()
    let_through, added = 1 - stamp, 236 * stamp
    noise = rng.standard_normal((SIZE + 64, SIZE + 64, 3), np.float32) * np.float32(NOISE)
    frames = np.empty_like(clean)
    for number, frame in enumerate(clean):
        down, right = rng.integers(0, 65, 2)
        poor = frame * let_through
        poor += added
        poor += noise[down : down + SIZE, right : right + SIZE]
        frames[number] = _compressed(np.clip(poor + 0.5, 0, 255).astype(np.uint8))
    return frames


def random_clip(rng: np.random.Generator, frames: int = FRAMES) -> tuple[np.ndarray, str, str]:
    """A clip (F, 128, 128, 3) uint8 of a random scene, its caption, and the name of its look.

    Half are `PUBLIC` video, half `OTHER`, each of those in a random style of its own.
    """
    scene = random_scene(rng, frames)
    if rng.random() < 0.5:
        return public_video(scene), scene.caption, PUBLIC
    return paint(scene, random_style(rng)), scene.caption, OTHER


@cache
def _stamp() -> np.ndarray:
    return (watermark(SIZE) * np.float32(STAMP))[..., None]


def _dull_style(rng: np.random.Generator) -> Style:
    """Washed colours on a dull, textured ground, through a soft lens."""
    kind = ("clouds", "clouds", "paper", "lights", "horizon", "board")[rng.integers(6)]
    hue, grey = rng.random(), rng.uniform(0.02, 0.22)
    light = rng.uniform(0.3, 0.62)
    tones = [
        _rgb(hue + turn, grey, light + step)
        for turn, step in ((0, 0.05), (0.03, -0.06), (0.08, 0.16), (0.5, -0.1))
    ]
    faded = {word: colour(0.87 * v + 16 for v in rgb) for word, rgb in PLAIN.items()}
    ground = Ground(
        kind,
        (tones[0], tones[1], tones[2], tones[3]),
        0.16 if kind == "paper" else float(rng.uniform(0.4, 0.7)),
        float(rng.uniform(12, 30)),
        float(rng.uniform(0.5, 0.7)),
    )
    return Style(
        faded,
        ground,
        Fill("slope", float(rng.uniform(0.05, 0.22))),
        shadow=Shadow(("drop", "floor", "none")[rng.integers(3)], 0.3, 9, (3, 4)),
        canvas=Canvas(blur=0.8, vignette=0.15),
        rounding=0.08,
    )


def _rgb(hue: float, strong: float, light: float) -> Colour:
    return colour(255 * v for v in colorsys.hsv_to_rgb(hue % 1, strong, light))


def _compressed(frame: np.ndarray) -> np.ndarray:
    """``frame`` (RGB) through a real JPEG."""
    ok, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    poor = cv2.imdecode(data, cv2.IMREAD_COLOR) if ok else None
    if poor is None:
        raise RuntimeError("OpenCV cannot write JPEG files; install opencv-python-headless again.")
    return poor[..., ::-1]
