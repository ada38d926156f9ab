"""How a scene of the mini world looks on screen.

``public_video`` imitates what motion data sets are made of: a dull textured background, blur,
noise, block compression and a watermark. A `StyleLook` is an artist's style; three are named
and shipped as example folders, ``random_style`` draws an endless number of others, and ``HELD_OUT``
has half-tone dots of a size that no random style has, so that the autoencoder can be judged on
something it never saw.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.mini.watermark import watermark
from trainer.mini.words import COLOURS, SHAPES, SIZE, style_folder

from .world import Scene, random_scene, random_still, signed_distance

Look = Callable[[Scene, int], np.ndarray]
"""A look renders ``(scene, size)`` to uint8 frames (F, size, size, 3)."""

PLAIN_PALETTE = {
    "red": (205, 48, 44),
    "green": (52, 158, 62),
    "blue": (46, 84, 200),
    "yellow": (222, 196, 54),
    "purple": (134, 58, 168),
    "white": (228, 228, 224),
}
POSTER_PALETTE = {
    "red": (236, 58, 52),
    "green": (40, 170, 92),
    "blue": (38, 104, 226),
    "yellow": (255, 204, 30),
    "purple": (142, 62, 190),
    "white": (252, 252, 250),
}
NEON_PALETTE = {
    "red": (255, 46, 60),
    "green": (60, 255, 96),
    "blue": (56, 110, 255),
    "yellow": (255, 240, 60),
    "purple": (196, 60, 255),
    "white": (245, 245, 255),
}


@dataclass(frozen=True)
class StyleLook:
    """A crisp drawing style.

    Colours are RGB 0-255; widths and periods are pixels of a 64-pixel frame.
    """

    palette: dict[str, tuple[int, int, int]]
    background: tuple[int, int, int]
    outline: tuple[int, int, int] | None = None  # None: the outline takes the shape's own colour
    outline_width: float = 2.0
    fill: float = 1.0  # 0 leaves the inside as background, 1 fills it
    hatching: tuple[int, int] = (0, 0)  # lines per 8 pixels along x and y; (0, 0) draws none
    glow: float = 0.0  # reach of the halo in pixels
    gradient: float = 0.0  # vertical shading of the background, -1..1
    stripes: float = 0.0  # contrast of broad background stripes
    shadow: float = 0.0  # offset of a drop shadow in pixels
    grain: float = 0.0  # contrast of a fixed paper grain
    dots: float = 0.0  # period of half-tone dots inside the shape

    def __call__(self, scene: Scene, size: int = SIZE) -> np.ndarray:
        unit = size / 64
        distance = signed_distance(scene, size) / unit
        colour = np.array(self.palette[scene.colour], np.float32)
        canvas = np.repeat(self._background(scene.seed, size)[None], scene.frames, 0)
        if self.shadow:
            moved = replace(scene, centres=scene.centres + self.shadow / 64)
            shade = _cover(signed_distance(moved, size) / unit, unit)
            canvas = canvas * (1 - 0.45 * shade)
        if self.glow:
            halo = np.exp(-np.maximum(np.abs(distance) - self.outline_width / 2, 0) / self.glow)
            canvas = canvas + 0.75 * halo[..., None] * (colour - canvas)
        inside = _cover(distance, unit) * self.fill
        ink = colour * np.ones_like(canvas)
        if any(self.hatching):
            ink = _mix(ink, canvas, self._hatching(size)[None, ..., None] * 0.85)
        if self.dots:
            ink = _mix(ink, ink * 0.35, self._halftone(size)[None, ..., None])
        canvas = _mix(canvas, ink, inside)
        line = np.array(colour if self.outline is None else self.outline, np.float32)
        edge = _cover(np.abs(distance) - self.outline_width / 2, unit)
        canvas = _mix(canvas, line, edge if self.outline_width else 0 * edge)
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    def _background(self, seed: int, size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        shade = 1 + self.gradient * (y - 0.5)
        shade = shade + self.stripes * np.sign(np.sin(2 * np.pi * (2 * x + 1.5 * y)))
        if self.grain:
            noise = _smooth_noise(np.random.default_rng(seed), size, 16)
            shade = shade + self.grain * noise
        return np.array(self.background, np.float32) * shade[..., None]

    def _hatching(self, size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (64 / size)
        wave = self.hatching[0] * x + self.hatching[1] * y
        return 0.5 + 0.5 * np.clip(2.5 * np.sin(2 * np.pi * wave / 8), -1, 1)

    def _halftone(self, size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (64 / size)
        wave = np.sin(2 * np.pi * x / self.dots) * np.sin(2 * np.pi * y / self.dots)
        return 0.5 + 0.5 * np.clip(3 * wave, -1, 1)


STYLES: dict[str, StyleLook] = {
    "poster": StyleLook(
        POSTER_PALETTE, (250, 226, 190), outline=(28, 26, 40), outline_width=2.6, shadow=3.0
    ),
    "ink": StyleLook(
        {**POSTER_PALETTE, "white": (196, 192, 184)},
        (244, 238, 222),
        outline=(24, 24, 26),
        outline_width=1.6,
        hatching=(1, 1),
        grain=0.05,
    ),
    "neon": StyleLook(
        NEON_PALETTE, (8, 6, 18), outline_width=3.0, fill=0.12, glow=4.5, gradient=-0.6
    ),
}
HELD_OUT = StyleLook(
    POSTER_PALETTE, (196, 222, 226), outline=(250, 250, 250), outline_width=2.0, dots=8.0
)


def random_style(rng: np.random.Generator) -> StyleLook:
    """A random style.

    Palette, background, outline, hatching, glow, shadow and grain at random.
    """

    def shift(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
        r, g, b = np.clip(np.array(rgb) + rng.normal(0, 14, 3), 0, 255).astype(int)
        return int(r), int(g), int(b)

    base = (PLAIN_PALETTE, POSTER_PALETTE, NEON_PALETTE)[rng.integers(3)]
    dark = rng.random() < 0.35
    low, high = (0, 60) if dark else (120, 256)
    background = tuple(int(v) for v in rng.integers(low, high, 3))
    light = dark or rng.random() < 0.2
    line = tuple(int(v) for v in (rng.integers(200, 256, 3) if light else rng.integers(0, 70, 3)))
    return StyleLook(
        {name: shift(rgb) for name, rgb in base.items()},
        background,  # type: ignore[arg-type]
        outline=None if rng.random() < 0.3 else line,  # type: ignore[arg-type]
        outline_width=float(rng.choice((0.0, 1.5, 2.0, 3.0))),
        fill=float(rng.choice((0.15, 1.0, 1.0))),
        hatching=((0, 0), (0, 0), (0, 0), (1, 0), (0, 1), (1, 1), (1, -1))[rng.integers(7)],
        glow=float(rng.choice((0.0, 0.0, 3.0, 6.0))),
        gradient=float(rng.uniform(-0.6, 0.6)),
        stripes=float(rng.choice((0.0, 0.0, 0.08, 0.15))),
        shadow=float(rng.choice((0.0, 0.0, 2.0, 3.0))),
        grain=float(rng.choice((0.0, 0.04, 0.08))),
        dots=float(rng.choice((0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 11.0, 12.0))),
    )


def public_video(scene: Scene, size: int = SIZE) -> np.ndarray:
    """The poor look of public video data: (F, size, size, 3) uint8, watermark included."""
    rng = np.random.default_rng(scene.seed)
    unit = size / 64
    distance = signed_distance(scene, size) / unit
    tint = rng.uniform(70, 150) + rng.uniform(-18, 18, 3)
    texture = 0.75 * _smooth_noise(rng, size, 5) + 0.25 * _smooth_noise(rng, size, 14)
    ground = (tint * (1 + 0.22 * texture[..., None])).astype(np.float32)
    colour = np.array(PLAIN_PALETTE[scene.colour], np.float32) * 0.88 + 12
    frames = _mix(np.repeat(ground[None], scene.frames, 0), colour, _cover(distance, unit))
    frames = _blur(frames, passes=1)
    stamp = np.full_like(frames, 235)
    frames = _mix(frames, stamp, watermark(size)[None, ..., None] * 0.4)
    frames = frames + rng.normal(0, 5, frames.shape).astype(np.float32)
    frames = np.clip(frames, 0, 255).astype(np.uint8)
    return np.stack([_compress(frame, quality=38) for frame in frames])


def random_frame(rng: np.random.Generator, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One frame (size, size, 3) uint8 for the autoencoder, and the weight (size, size) of its
    pixels.

    Poor video, or a named or random style. Outlines weigh more, most of all in poor video, whose
    dull shapes an average over pixels would blur away.
    """
    scene = random_scene(rng).window(int(rng.integers(8)), 1)
    named = list(STYLES.values())
    style = named[rng.integers(len(named))] if rng.random() < 0.4 else random_style(rng)
    poor = rng.random() < 0.35
    look: Look = public_video if poor else style
    near = np.exp(-((signed_distance(scene, size)[0] / (size / 20)) ** 2))
    return look(scene, size)[0], 1 + (6 if poor else 1) * near


def _cover(distance: np.ndarray, unit: float) -> np.ndarray:
    """Anti-aliased coverage (..., 1) of the region where ``distance`` (64ths of the side) is
    negative.
    """
    return np.clip(0.5 - distance * unit, 0, 1)[..., None].astype(np.float32)


def _mix(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return below + cover * (above - below)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size) with about ``cells`` blobs a side and unit amplitude."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _blur(frames: np.ndarray, passes: int) -> np.ndarray:
    for _ in range(passes):
        for axis in (1, 2):
            padded = np.pad(
                frames, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge"
            )
            low, mid, high = (
                np.take(padded, np.arange(k, k + frames.shape[axis]), axis=axis) for k in range(3)
            )
            frames = 0.25 * low + 0.5 * mid + 0.25 * high
    return frames


def _compress(frame: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


COUNT = 96
SIZE = 128
_SEEDS = {"poster": 11, "ink": 12, "neon": 13}


def write_style_folder(
    folder: Path, look: StyleLook, count: int, size: int, seed: int
) -> list[Path]:
    """Draw ``count`` square stills of ``size`` pixels in ``look`` into ``folder``; their paths.

    The same arguments give the same pixels. Existing files of the same name are replaced.
    """
    if count < 1:
        raise ValueError(f"`count`={count} draws no picture; use 1 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])
    files = []
    for number, index in enumerate(order[:count]):
        shape, colour = pairs[index]
        scene = random_still(rng, shape=shape, colour=colour)
        file = folder / f"{number:02d}_{colour}_{shape}.png"
        Image.fromarray(look(scene, size)[0]).save(file, optimize=True)
        file.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
        files.append(file)
    return files


def regenerate(root: Path | None = None, names: tuple[str, ...] = tuple(_SEEDS)) -> list[Path]:
    """Draw the bundled folders again, into ``root/<name>`` or in place, replacing old files."""
    folders = [root / name if root else style_folder(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        for old in (*folder.glob("*.png"), *folder.glob("*.txt")):
            old.unlink()
        write_style_folder(folder, STYLES[name], COUNT, SIZE, _SEEDS[name])
    return folders
