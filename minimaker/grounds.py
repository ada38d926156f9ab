"""What lies behind the things: skies, hills, papers and patterns.

A ground is drawn once for a clip, wider than the frame where the camera pans. Its marks are faint
where they are fine, so that a small autoencoder can keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import smooth_noise
from .scenes import SIZE
from .style import Colour, Ground


@dataclass(frozen=True)
class Field:
    """Where a ground is drawn: ``x`` (1, W) and ``y`` (H, 1) in px of the frame, ``rng`` for its
    marks, and whether the camera ``pans`` over it.
    """

    x: np.ndarray
    y: np.ndarray
    rng: np.random.Generator
    pans: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]


def draw_ground(ground: Ground, seed: int, pad: int) -> np.ndarray:
    """The ground (3, SIZE + 2 pad, SIZE + 2 pad), float32 0-255."""
    steps = np.arange(-pad, SIZE + pad, dtype=np.float32) + 0.5
    field = Field(steps[None], steps[:, None], np.random.default_rng((seed, 1)), pad > 0)
    return KINDS[ground.kind](ground, field).astype(np.float32, copy=False)


def plane(colour: Colour) -> np.ndarray:
    """A colour as (3, 1, 1) float32."""
    return np.array(colour, np.float32)[:, None, None]


def _blend(first: np.ndarray, second: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    return first + amount * (second - first)


def _slope(field: Field, top: Colour, bottom: Colour, end: float = SIZE) -> np.ndarray:
    """A gradient from ``top`` to ``bottom``, which is reached ``end`` px down: (3, H, W)."""
    down = np.clip(field.y / end, 0, 1)
    down = down * down * (3 - 2 * down)
    return _blend(plane(top), plane(bottom), np.broadcast_to(down, field.shape))


def _lamp(field: Field, picture: np.ndarray, amount: float) -> np.ndarray:
    """Light that falls on the middle."""
    away = ((field.x - 52) ** 2 + (field.y - 44) ** 2) * np.float32(1 / 90**2)
    return picture * (1 + amount * (0.5 - np.clip(away, 0, 1.5)))


def _plain(ground: Ground, field: Field) -> np.ndarray:
    picture = _lamp(field, _slope(field, *ground.colours[:2]), 0.6 * ground.contrast)
    if not field.pans:
        return picture
    clouds = smooth_noise(field.rng, max(ground.scale, 20), *field.shape)
    return picture * (1 - 0.14 * np.clip(0.5 + 1.2 * clouds, 0, 1))


def _ridge(field: Field, level: float, height: float, length: float) -> np.ndarray:
    """How far (H, W) in px a point lies below a wavy line that is ``level`` px down."""
    phase = field.rng.uniform(0, 2 * np.pi, 3)
    wave = sum(
        part * np.sin(field.x * np.float32(2 * np.pi * step / length) + np.float32(turn))
        for part, step, turn in zip((0.6, 0.3, 0.12), (1, 2.3, 4.1), phase, strict=True)
    )
    return field.y - (level - height * wave)


def _edge(distance: np.ndarray) -> np.ndarray:
    return np.clip(distance + 0.5, 0, 1)


def _horizon(ground: Ground, field: Field) -> np.ndarray:
    """A floor that meets a wall in a soft line; distant hills where the camera pans."""
    level = ground.horizon * SIZE
    wall, floor, glow = ground.colours[0], ground.colours[2], ground.colours[1]
    picture = _slope(field, wall, glow, level)
    if field.pans:
        shade = _blend(plane(glow), plane(ground.colours[3]), 0.35)
        picture = _blend(picture, shade, _edge(_ridge(field, level - 12, 14, 90)))
    far = np.clip((field.y - level) / (SIZE - level), 0, 1)
    ground_tone = _blend(plane(floor), plane(ground.colours[3]), np.broadcast_to(far, field.shape))
    picture = _blend(picture, ground_tone, np.clip((field.y - level) / 2 + 0.5, 0, 1))
    return _lamp(field, picture, ground.contrast)


def _hills(ground: Ground, field: Field) -> np.ndarray:
    """A sky and three rows of hills like sheets of paper, each with a shadow on the one behind."""
    level = ground.horizon * SIZE
    picture = _slope(field, ground.colours[0], ground.colours[1], level)
    for row, (down, height, length) in enumerate(((0, 9, 84), (17, 8, 112), (36, 7, 150))):
        tone = _blend(plane(ground.colours[2]), plane(ground.colours[3]), row / 2)
        below = _ridge(field, level + down, height, length)
        shade = np.exp(-np.maximum(-below - 1, 0) / 5) * np.float32(ground.contrast)
        picture = _blend(picture * (1 - shade), tone, _edge(below))
    return picture


def _dots(ground: Ground, field: Field) -> np.ndarray:
    picture = _slope(field, *ground.colours[:2])
    step = np.float32(ground.scale)
    u, v = (field.x + field.y) / step / 2, (field.x - field.y) / step / 2
    away = np.hypot(u % 1 - 0.5, v % 1 - 0.5) * (2**0.5 * step)
    cover = np.clip(0.26 * step - away + 0.5, 0, 1)
    return _blend(picture, plane(ground.colours[2]), ground.contrast * cover)


def _stripes(ground: Ground, field: Field) -> np.ndarray:
    picture = _slope(field, *ground.colours[:2])
    lean = field.rng.choice((-0.6, 0.0, 0.6, 1.0))
    wave = (field.x + np.float32(lean) * field.y) / np.float32(ground.scale * (1 + lean**2) ** 0.5)
    edge = np.abs(wave % 1 - 0.5) - 0.25
    cover = np.clip(edge * ground.scale + 0.5, 0, 1)
    return _blend(picture, plane(ground.colours[2]), ground.contrast * cover)


def _rays(ground: Ground, field: Field) -> np.ndarray:
    """Broad rays of a rising sun from below the frame."""
    picture = _slope(field, *ground.colours[:2])
    x, y = field.x - 64, field.y - SIZE * 1.12
    turn = np.arctan2(x, -y) * np.float32(11 / np.pi)
    edge = (np.abs(turn % 1 - 0.5) - 0.25) * np.hypot(x, y) * np.float32(np.pi / 11)
    cover = np.clip(edge + 0.5, 0, 1)
    return _blend(picture, plane(ground.colours[2]), ground.contrast * cover)


def _night(ground: Ground, field: Field) -> np.ndarray:
    """A dark sky with stars over hills."""
    level = ground.horizon * SIZE
    picture = np.ascontiguousarray(_slope(field, ground.colours[0], ground.colours[1], level * 1.2))
    points = np.zeros(field.shape, np.float32)
    count = int(34 * field.shape[0] * field.shape[1] / SIZE**2)
    rows, columns = (field.rng.integers(0, side, count) for side in field.shape)
    points[rows, columns] = field.rng.uniform(0.35, 1, count) ** 2
    stars = cv2.GaussianBlur(points, (0, 0), 0.8) * 4
    picture += (stars * (1 - np.clip(field.y / level, 0, 1) ** 2)) * np.float32(150)
    for row, down in enumerate((6, 22)):
        tone = _blend(plane(ground.colours[2]), plane(ground.colours[3]), float(row))
        picture = _blend(picture, tone, _edge(_ridge(field, level + down, 8, 100)))
    return picture


def _grid(ground: Ground, field: Field) -> np.ndarray:
    """Glowing lines on a floor that runs to the horizon."""
    level = ground.horizon * SIZE
    picture = _slope(field, ground.colours[0], ground.colours[1], level)
    depth = np.maximum(field.y - level, 0.5)
    across = (field.x - 64) / depth * np.float32(22 / ground.scale * 2)
    away = np.float32(220 / ground.scale) / depth * 4
    near = np.clip(depth / 24, 0, 1)
    lines = np.maximum(
        _thin(across, depth * np.float32(ground.scale / 44)),
        _thin(away, depth**2 * np.float32(ground.scale / 880)),
    )
    floor = _blend(plane(ground.colours[1]), plane(ground.colours[3]), near * 1.0)
    floor = floor + lines * near * ground.contrast * 1.6 * plane(ground.colours[2])
    below = np.clip(field.y - level + 0.5, 0, 1)
    skyline = np.exp(-np.abs(field.y - level) / 6) * (1.6 * ground.contrast)
    return _blend(picture, floor, below) + skyline * plane(ground.colours[2])


def _thin(wave: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Soft lines 2 px wide where ``wave`` is whole; a step of it is ``pixels`` px long."""
    return np.clip(1.3 - np.abs((wave + 0.5) % 1 - 0.5) * pixels * 0.75, 0, 1)


def _paper(ground: Ground, field: Field) -> np.ndarray:
    broad = smooth_noise(field.rng, ground.scale * 2, *field.shape)
    middle = smooth_noise(field.rng, max(ground.scale / 2, 6), *field.shape)
    weight = 2.0 if field.pans else 1.0
    picture = _slope(field, *ground.colours[:2])
    return picture * (1 + weight * ground.contrast * (0.5 * broad + 0.25 * middle))


def _clouds(ground: Ground, field: Field) -> np.ndarray:
    noise = 0.65 * smooth_noise(field.rng, ground.scale * 1.8, *field.shape)
    noise += 0.35 * smooth_noise(field.rng, ground.scale * 0.8, *field.shape)
    amount = np.clip(0.5 + noise, 0, 1)
    picture = _slope(field, *ground.colours[:2])
    return _blend(picture, plane(ground.colours[2]), ground.contrast * amount)


def _lights(ground: Ground, field: Field) -> np.ndarray:
    """Lights out of focus, as a camera sees them far behind."""
    picture = _lamp(field, _slope(field, *ground.colours[:2]), 0.2)
    area = field.shape[0] * field.shape[1] / SIZE**2
    for number in range(int(9 * area)):
        cx, cy = field.rng.uniform(field.x[0, 0], field.x[0, -1], 2)
        radius = np.float32(ground.scale * field.rng.uniform(0.3, 0.7))
        away = np.sqrt((field.x - np.float32(cx)) ** 2 + (field.y - np.float32(cy)) ** 2)
        disc = np.clip((radius - away) / 4 + 0.5, 0, 1) * np.float32(ground.contrast * 0.6)
        picture = _blend(picture, plane(ground.colours[2 + number % 2]), disc)
    return picture


def _board(ground: Ground, field: Field) -> np.ndarray:
    """A blackboard that was wiped with long strokes."""
    height, width = field.shape
    broad = smooth_noise(field.rng, ground.scale * 2, height, width)
    coarse = field.rng.uniform(-1, 1, (int(height / 7) + 2, int(width / 44) + 2))
    wiped = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture = _slope(field, *ground.colours[:2])
    amount = np.clip(0.45 + 0.5 * broad + 0.3 * wiped, 0, 1)
    return _blend(picture, plane(ground.colours[2]), ground.contrast * amount)


KINDS: dict[str, Callable[[Ground, Field], np.ndarray]] = {
    "plain": _plain,
    "horizon": _horizon,
    "hills": _hills,
    "dots": _dots,
    "stripes": _stripes,
    "rays": _rays,
    "night": _night,
    "grid": _grid,
    "paper": _paper,
    "clouds": _clouds,
    "lights": _lights,
    "board": _board,
}
