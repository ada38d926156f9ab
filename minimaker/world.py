"""The mini world: one coloured shape that moves, with a caption that says how.

A `Scene` is pure geometry. How it looks on screen is decided by a *look* (``looks.py``), so
the same scene can be rendered as a poor public video, as a crisp still in some style, or as a true
video in that style (which only tests and benchmarks may do: training never sees it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainer.mini.words import COLOURS, MOTIONS, SHAPES, SIZE

REVERSED = {
    "moving left": "moving right",
    "moving right": "moving left",
    "moving up": "moving down",
    "moving down": "moving up",
    "growing": "shrinking",
    "shrinking": "growing",
    "circling": "circling",
    "bouncing": "bouncing",
}
FRAMES = 8
FPS = 8


@dataclass(frozen=True)
class Scene:
    """Geometry of one clip, in units of the frame's side (0..1, y grows downwards).

    ``centres`` (F, 2) as (x, y), ``radii`` (F,), ``angle`` in radians; ``motion`` is None for a
    still.
    """

    shape: str
    colour: str
    motion: str | None
    centres: np.ndarray
    radii: np.ndarray
    angle: float
    seed: int

    @property
    def frames(self) -> int:
        return len(self.radii)

    @property
    def caption(self) -> str:
        return caption(self.shape, self.colour, self.motion)

    def window(self, start: int, length: int = FRAMES) -> Scene:
        """The same scene cut to ``length`` frames from ``start``."""
        part = slice(start, start + length)
        return replace(self, centres=self.centres[part], radii=self.radii[part])


def caption(shape: str, colour: str, motion: str | None = None) -> str:
    """``caption("star", "red", "growing")`` is "a red star growing"."""
    return f"a {colour} {shape}" + (f" {motion}" if motion else "")


def random_scene(
    rng: np.random.Generator,
    frames: int = FRAMES,
    *,
    shape: str | None = None,
    colour: str | None = None,
    motion: str | None = None,
) -> Scene:
    """A moving scene; attributes that are not given are drawn uniformly."""
    shape = shape or SHAPES[rng.integers(len(SHAPES))]
    colour = colour or COLOURS[rng.integers(len(COLOURS))]
    motion = motion or MOTIONS[rng.integers(len(MOTIONS))]
    centres, radii = _PATHS[motion](rng, np.arange(frames, dtype=np.float64))
    angle = rng.uniform(-0.25, 0.25)
    seed = int(rng.integers(2**31))
    return Scene(shape, colour, motion, centres, radii, angle, seed)


def random_still(
    rng: np.random.Generator, *, shape: str | None = None, colour: str | None = None
) -> Scene:
    """A scene of one frame, as the style folders hold them: its caption names no motion."""
    scene = random_scene(rng, 1, shape=shape, colour=colour, motion="growing")
    centre = rng.uniform(0.3, 0.7, size=(1, 2))
    radius = rng.uniform(0.18, 0.32, size=1)
    return replace(scene, motion=None, centres=centre, radii=radius)


def _translate(direction: tuple[int, int]):
    def path(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        travel = rng.uniform(0.055, 0.07) * (len(t) - 1)
        travel = min(travel, 0.76)
        along = 0.5 - travel / 2 + rng.uniform(-0.5, 0.5) * (0.76 - travel)
        across = rng.uniform(0.3, 0.7)
        steps = along + travel * t / max(len(t) - 1, 1)
        if min(direction) < 0:
            steps = 1 - steps
        fixed = np.full_like(steps, across)
        pair = (steps, fixed) if direction[0] else (fixed, steps)
        return np.stack(pair, axis=1), np.full_like(steps, rng.uniform(0.2, 0.27))

    return path


def _resize(sign: int):
    def path(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        small, large = rng.uniform(0.12, 0.15), rng.uniform(0.34, 0.4)
        radii = small + (large - small) * t / max(len(t) - 1, 1)
        centre = rng.uniform(0.38, 0.62, size=2)
        return np.repeat(centre[None], len(t), 0), radii if sign > 0 else radii[::-1].copy()

    return path


def _circle(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turn = rng.choice((-1, 1)) * 2 * np.pi / rng.uniform(7.5, 9.0)
    angle = rng.uniform(0, 2 * np.pi) + turn * t
    reach = rng.uniform(0.17, 0.21)
    middle = rng.uniform(0.42, 0.58, size=2)
    centres = middle + reach * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return centres, np.full_like(t, rng.uniform(0.18, 0.22))


def _bounce(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    phase, period = rng.uniform(0, 1), rng.uniform(3.6, 4.6)
    u = (t / period + phase) % 1.0
    height = rng.uniform(0.34, 0.42) * 4 * u * (1 - u)
    radius = rng.uniform(0.18, 0.23)
    x = np.full_like(t, rng.uniform(0.3, 0.7))
    return np.stack((x, 0.77 - height), axis=1), np.full_like(t, radius)


_PATHS = {
    "moving left": _translate((-1, 0)),
    "moving right": _translate((1, 0)),
    "moving up": _translate((0, -1)),
    "moving down": _translate((0, 1)),
    "growing": _resize(1),
    "shrinking": _resize(-1),
    "circling": _circle,
    "bouncing": _bounce,
}


def _polygon(points: int, inner: float | None = None) -> np.ndarray:
    """Vertices (N, 2) of a regular polygon, or of a star when ``inner`` (0..1) is given.

    First one up.
    """
    count = points if inner is None else 2 * points
    angle = -np.pi / 2 + 2 * np.pi * np.arange(count) / count
    reach = np.ones(count) if inner is None else np.where(np.arange(count) % 2, inner, 1.0)
    return reach[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)


_ARM = 0.36
_CROSS = np.array(
    [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
    + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]
)
_VERTICES = {
    "square": np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": _polygon(3) * 1.15,
    "cross": _CROSS,
    "star": _polygon(5, inner=0.45) * 1.15,
}


def signed_distance(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Signed distance of every pixel to the shape's outline, in pixels, negative inside.

    (F, size, size).
    """
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    centres, radii = scene.centres.astype(np.float32), scene.radii.astype(np.float32)
    x = (grid[None, None, :] - centres[:, 0, None, None]) / radii[:, None, None]
    y = (grid[None, :, None] - centres[:, 1, None, None]) / radii[:, None, None]
    cos, sin = np.float32(np.cos(scene.angle)), np.float32(np.sin(scene.angle))
    x, y = cos * x + sin * y, cos * y - sin * x
    if scene.shape == "circle":
        distance = np.hypot(x, y) - 1
    else:
        distance = _polygon_distance(x, y, _VERTICES[scene.shape].astype(np.float32))
    return distance * (radii[:, None, None] * size)


def _polygon_distance(x: np.ndarray, y: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon.

    Nearest edge for the size, crossing number for the sign.
    """
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey != 0:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -1, 1) * np.sqrt(nearest)
