"""How the inside of a thing is shaded.

A fill is a field of tones: 0 is the thing's own colour, -1 black, 1 white. Marks are fixed to the
thing and travel with it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .canvas import smooth_noise
from .outlines import Patch
from .style import Fill

TILE = 160
"""Side in px of the texture that a thing carries."""
LIGHT = (-0.55, -0.83)
"""Direction to the light, from the upper left."""
SHADE_TINT = np.array((1.03, 1.0, 0.86), np.float32)[:, None, None]
"""How strongly darkness takes red, green and blue: shadows turn a little blue."""
GLEAM = np.array((255, 252, 240), np.float32)[:, None, None]


def toned(colour: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """``colour`` (3, 1, 1) at the tones (h, w): (3, h, w)."""
    dark, light = np.maximum(-tone, 0), np.maximum(tone, 0)
    return colour * (1 - dark * SHADE_TINT) + light * (GLEAM - colour * (1 - dark * SHADE_TINT))


def tones(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """Tones (h, w) of ``fill`` on ``patch``; ``texture`` as `carried` makes it."""
    return KINDS[fill.kind](fill, patch, _placed(texture, patch))


def carried(fill: Fill, rng: np.random.Generator) -> np.ndarray:
    """The texture (TILE, TILE) in -1..1 that a thing with ``fill`` carries along."""
    if fill.kind == "cells":
        return _mosaic(rng, fill.scale)
    if fill.kind == "blocks":
        side = TILE // max(int(fill.scale), 1) + 1
        small = rng.uniform(-1, 1, (side, side)).astype(np.float32)
        return np.kron(small, np.ones((int(fill.scale),) * 2, np.float32))[:TILE, :TILE]
    if fill.kind == "strokes":
        long = smooth_noise(rng, 5.0, 2 * TILE, 40)
        long = cv2.resize(long, (2 * TILE, 2 * TILE), interpolation=cv2.INTER_CUBIC)
        turn = cv2.getRotationMatrix2D((TILE, TILE), 52, 1) - np.array(((0, 0, TILE / 2),) * 2)
        return cv2.warpAffine(long, turn, (TILE, TILE))
    if fill.kind == "grain":
        fine = rng.standard_normal((TILE, TILE)).astype(np.float32)
        return np.clip(cv2.GaussianBlur(fine, (0, 0), 0.7) * 1.2, -1, 1)
    return smooth_noise(rng, max(fill.scale, 4.0) * 1.6, TILE, TILE)


def _mosaic(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Cells around points, each with a tone of its own."""
    dots = np.ones((TILE, TILE), np.uint8)
    count = int((TILE / scale) ** 2)
    dots[rng.integers(0, TILE, count), rng.integers(0, TILE, count)] = 0
    _, labels = cv2.distanceTransformWithLabels(
        dots, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return rng.uniform(-1, 1, labels.max() + 1).astype(np.float32)[labels]


def _placed(texture: np.ndarray, patch: Patch) -> np.ndarray:
    height, width = patch.distance.shape
    top, left = (TILE // 2 + int(np.floor(v)) for v in (float(patch.y[0, 0]), float(patch.x[0, 0])))
    rows = np.clip(np.arange(top, top + height), 0, TILE - 1)
    columns = np.clip(np.arange(left, left + width), 0, TILE - 1)
    return texture[rows][:, columns]


def _lit(patch: Patch) -> np.ndarray:
    """How far a point lies towards the light: about 1 on the lit side, -1 on the other."""
    scale = np.float32(1 / patch.radius)
    return patch.x * (LIGHT[0] * scale) + patch.y * (LIGHT[1] * scale)


def _flat(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    return np.zeros_like(patch.distance)


def _radial(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """A ball's shading: a gleam at the upper left, a dark side, a little light from below."""
    scale = np.float32(1 / patch.radius)
    x, y = patch.x * scale + 0.34, patch.y * scale + 0.42
    away = np.sqrt(x * x + y * y)
    gleam = np.clip(1 - away * 1.5, 0, 1) ** 2
    edge = np.clip(1 + patch.distance * (3.5 * scale), 0, 1)  # 1 at the outline, 0 far inside
    dark = np.clip(away - 0.55, 0, 1.2) ** 1.3
    return fill.strength * (1.5 * gleam - 0.75 * dark - 0.35 * edge * edge)


def _slope(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    return fill.strength * np.clip(_lit(patch), -1, 1) * 0.7


def _cel(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """Two or three flat tones with sharp borders."""
    lit = _lit(patch)
    width = np.float32(1.2 / patch.radius)
    shade = np.clip((-0.22 - lit) / width + 0.5, 0, 1)
    gleam = np.clip((lit - 0.5) / width + 0.5, 0, 1)
    return fill.strength * (0.5 * gleam - 0.9 * shade)


def _hatching(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """Pen strokes that grow thick on the dark side."""
    lit = _lit(patch) + 0.25 * texture
    wave = np.abs(((patch.x - patch.y) * np.float32(0.7071 / fill.scale)) % 1 - 0.5)
    width = np.clip(0.32 - 0.36 * (lit + 0.15), 0, 0.42) * 0.5
    stroke = np.clip((width - wave) * fill.scale + 0.5, 0, 1) * np.clip(width * 20, 0, 1)
    return -fill.strength * stroke + 0.1 * lit


def _wash(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """Watercolour: pigment gathers at the edge and in clouds."""
    edge = np.exp(np.minimum(patch.distance, 0) * np.float32(1 / fill.scale * 2.2))
    pool = np.clip(-_lit(patch), -1, 1)
    return fill.strength * (0.42 - 0.8 * edge + 0.4 * texture - 0.22 * pool)


def _marked(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """Tones of the texture over a soft slope of light."""
    return fill.strength * (0.6 * texture + 0.35 * np.clip(_lit(patch), -1, 1))


def _bands(fill: Fill, patch: Patch, texture: np.ndarray) -> np.ndarray:
    """Lines parallel to the outline, lighter towards the middle."""
    wave = np.cos(patch.distance * np.float32(2 * np.pi / fill.scale))
    return fill.strength * 0.55 * np.clip(2 * wave, -1, 1) * (patch.distance < fill.scale)


KINDS: dict[str, Callable[[Fill, Patch, np.ndarray], np.ndarray]] = {
    "flat": _flat,
    "radial": _radial,
    "slope": _slope,
    "cel": _cel,
    "hatching": _hatching,
    "wash": _wash,
    "grain": _marked,
    "blocks": _marked,
    "cells": _marked,
    "strokes": _marked,
    "bands": _bands,
}
