"""Signed distances of the five shapes, exact up to rounded corners, in a box around a thing.

A shape is folded by its mirror axes until one straight edge is left, so that a distance costs a
few operations on a small array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scenes import SIZE, Track

ROUNDING = 0.1
"""Radius of a usual corner, as a part of the thing's."""
SIDES = {"triangle": 3, "square": 4, "star": 5}
CORNER = {"circle": 1.0, "triangle": 1.2, "square": 1.16, "star": 1.14, "cross": 1.02}
"""Distance of an unrounded corner from the middle, for radius 1."""
STAR_WAIST = 0.5
"""Reach of a star's inner corners, as a part of the outer ones."""
CROSS_ARM = 0.36
"""Half width of a cross's arm, as a part of its length."""


REACH_DOWN = {"circle": 1.0, "triangle": 0.72, "square": 0.82, "star": 0.9, "cross": 1.0}
"""How far below its centre an upright shape of radius 1 ends."""


@dataclass(frozen=True)
class Patch:
    """A box of pixels around a thing; its corner may lie outside the frame.

    ``top``, ``left`` are the box's corner in the frame's pixels; ``x`` (1, w) and ``y`` (h, 1) the
    distances of the pixels' middles from the thing's centre; ``distance`` (h, w) is negative
    inside; all in pixels, as ``radius``.
    """

    top: int
    left: int
    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    radius: float

    def cover(self, grow: float = 0.0, soft: float = 1.0) -> np.ndarray:
        """Coverage (h, w) in 0..1 of the shape grown by ``grow`` px, with an edge ``soft`` px
        wide.
        """
        return np.clip(0.5 - (self.distance - grow) / soft, 0, 1)

    def inner(self, less: float) -> Patch:
        """The same patch without ``less`` px on each side."""
        cut = max(int(less), 0)
        height, width = self.distance.shape
        rows, columns = slice(cut, height - cut), slice(cut, width - cut)
        return Patch(
            self.top + cut,
            self.left + cut,
            self.x[:, columns],
            self.y[rows],
            self.distance[rows, columns],
            self.radius,
        )


def outline(
    track: Track, frame: int, seen: np.ndarray, margin: float, rounding: float = ROUNDING
) -> Patch:
    """The patch of ``track`` in ``frame`` with ``margin`` px around it.

    ``seen`` (F, 2) are its centres on screen; ``rounding`` is the radius of the corners as a part
    of the thing's.
    """
    cx, cy = (float(v) * SIZE for v in seen[frame])
    radius = float(track.radii[frame]) * SIZE
    half = int(np.ceil(1.25 * radius + margin))
    left, top = int(np.floor(cx)) - half, int(np.floor(cy)) - half
    steps = np.arange(2 * half + 2, dtype=np.float32)
    x = (steps + np.float32(left + 0.5 - cx))[None]
    y = (steps + np.float32(top + 0.5 - cy))[:, None]
    cos, sin = np.float32(np.cos(track.angle)), np.float32(np.sin(track.angle))
    shape = track.thing.shape
    distance = shape_distance(shape, cos * x + sin * y, cos * y - sin * x, radius, rounding)
    return Patch(top, left, x, y, distance, radius)


def shape_distance(
    shape: str, x: np.ndarray, y: np.ndarray, radius: float, rounding: float
) -> np.ndarray:
    """Signed distance of the points (x, y), in the unit of ``radius``, to an upright shape."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - np.float32(radius)
    round_off = rounding * radius
    corner = CORNER[shape] * radius
    if shape == "cross":
        return _cross(x, y, corner - round_off, CROSS_ARM * corner - round_off) - round_off
    sides = SIDES[shape]
    step = np.pi / sides
    if shape == "square":
        x, y = _turned(x, y, np.pi / 4)
    if shape == "triangle":
        y = y - np.float32(0.12 * radius)  # its middle lies high in its box
    waist = corner * (STAR_WAIST if shape == "star" else np.cos(step))
    # Both ends of an edge move along their rays until the edge has come in by the rounding.
    height = (
        corner
        * waist
        * np.sin(step)
        / np.sqrt(corner**2 + waist**2 - 2 * corner * waist * np.cos(step))
    )
    keep = max(1 - round_off / height, 0.05)
    return _folded(x, y, sides, corner * keep, waist * keep) - round_off


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _folded(x: np.ndarray, y: np.ndarray, sides: int, corner: float, waist: float) -> np.ndarray:
    """Distance to a polygon of ``sides`` corners, the first one up, with waists in between."""
    step = np.pi / sides
    # A mirror through the middle, along the ray of the waist; its normal points away from up.
    nx, ny = np.float32(np.cos(step)), np.float32(-np.sin(step))
    x, up = np.abs(x), -y
    for _ in range(sides // 2):
        beyond = 2 * np.maximum(nx * x + ny * up, 0)
        x, up = np.abs(x - beyond * nx), up - beyond * ny
    ex, ey = waist * np.sin(step), waist * np.cos(step) - corner
    length = ex * ex + ey * ey
    up = up - np.float32(corner)
    along = np.clip((x * np.float32(ex) + up * np.float32(ey)) * np.float32(1 / length), 0, 1)
    dx, dy = x - along * np.float32(ex), up - along * np.float32(ey)
    size = np.sqrt(dx * dx + dy * dy)
    return np.copysign(size, up * np.float32(ex) - x * np.float32(ey))


def _cross(x: np.ndarray, y: np.ndarray, arm: float, width: float) -> np.ndarray:
    """Distance to a cross with arms ``arm`` long and ``width`` to each side."""
    ax, ay = np.abs(x), np.abs(y)
    far, near = np.maximum(ax, ay), np.minimum(ax, ay)
    dx, dy = far - np.float32(arm), near - np.float32(width)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    core = np.sqrt((far - np.float32(width)) ** 2 + dy * dy)
    inside = np.where(far < width, -core, np.minimum(np.maximum(dx, dy), 0))
    return outside + inside
