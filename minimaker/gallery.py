"""The named styles of the mini world, one that is held out, and endless random ones."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import partial

import numpy as np

from .paint import paint
from .scenes import Scene
from .style import (
    CHALK,
    INK,
    NEON,
    PALETTES,
    PIXEL,
    POSTER,
    WATER,
    Canvas,
    Colour,
    Colours,
    Fill,
    Ground,
    Line,
    Palette,
    Shadow,
    Style,
    colour,
)

Look = Callable[[Scene], np.ndarray]
"""A look draws a scene as uint8 frames (F, 128, 128, 3)."""

_PIXEL_SKY: Colours = ((120, 196, 236), (176, 224, 240), (96, 148, 128), (58, 96, 104))
_PIXEL_DARK: Colour = (34, 28, 52)

NAMED: dict[str, Style] = {
    "poster": Style(
        POSTER,
        Ground("rays", ((246, 216, 168), (238, 186, 132), (252, 232, 194), (0, 0, 0)), 0.6),
        shadow=Shadow("long", 0.3, 1.0, reach=50),
        rounding=0.14,
    ),
    "neon": Style(
        NEON,
        Ground("grid", ((12, 8, 30), (44, 14, 66), (150, 50, 190), (10, 6, 26)), 0.26, 36, 0.64),
        Fill("slope", 0.25, opacity=0.62),
        Line(3.2, tone=0.25),
        glow=34,
        core=0.75,
        rounding=0.2,
    ),
    "ink": Style(
        INK,
        Ground("paper", ((247, 241, 227), (240, 230, 208), (0, 0, 0), (0, 0, 0)), 0.05),
        Fill("hatching", 0.4, 9.0),
        Line(2.8, (36, 32, 40), brush=0.45, rough=0.8),
        Shadow("floor", 0.3),
        Canvas(paper=1.6, vignette=0.14),
    ),
    "watercolour": Style(
        WATER,
        Ground("clouds", ((246, 246, 242), (236, 240, 238), (158, 196, 214), (0, 0, 0)), 0.8, 30),
        Fill("wash", 0.42, 7.0, opacity=0.94),
        Line(1.2, tone=-0.3, rough=0.9),
        canvas=Canvas(paper=2.0),
        rounding=0.16,
    ),
    "cutout": Style(
        POSTER,
        Ground("hills", ((250, 226, 196), (246, 206, 176), (150, 190, 190), (44, 92, 112)), 0.34),
        Fill("grain", 0.07),
        Line(0.0, rough=0.5),
        Shadow("drop", 0.42, 9, (3, 6)),
        Canvas(paper=1.2),
        rounding=0.05,
    ),
    "chalk": Style(
        CHALK,
        Ground("board", ((44, 66, 62), (34, 52, 52), (92, 116, 110), (0, 0, 0)), 0.42, 30),
        Fill("strokes", 0.22, opacity=0.92),
        Line(3.0, tone=0.28, rough=0.7),
        canvas=Canvas(chalk=0.2, vignette=0.2),
    ),
    "pixel": Style(
        PIXEL,
        Ground("hills", _PIXEL_SKY, 0.0, horizon=0.6),
        Fill("cel", 0.42),
        Line(4.2, _PIXEL_DARK),
        canvas=Canvas(
            pixels=4,
            colours=(
                *PIXEL.values(),
                *(colour(v * 0.64 for v in rgb) for rgb in PIXEL.values()),
                *(colour(v + 0.3 * (255 - v) for v in rgb) for rgb in PIXEL.values()),
                *_PIXEL_SKY,
                (148, 210, 238),
                (136, 186, 184),
                (77, 122, 116),
                _PIXEL_DARK,
            ),
        ),
        rounding=0.0,
    ),
}
"""What the named styles are made of."""
STYLES: dict[str, Look] = {name: partial(paint, style=style) for name, style in NAMED.items()}
HELD_OUT: Look = partial(
    paint,
    style=Style(
        POSTER,
        Ground("plain", ((214, 232, 236), (188, 214, 226), (0, 0, 0), (0, 0, 0)), 0.2),
        Fill("slope", 0.4),
        Line(2.4, (40, 36, 60)),
        canvas=Canvas(halftone=8.0),
    ),
)
"""Printed dots, which no random style has."""

DARK_ONLY = ("night", "grid", "board")
GROUNDS = (
    "plain", "horizon", "horizon", "hills", "dots", "stripes", "rays", "night", "grid", "paper",
    "clouds", "lights", "board",
)  # fmt: skip
FILLS = ("flat", "flat", "radial", "slope", "cel", "hatching", "wash", "grain", "blocks", "cells",
         "bands", "strokes")  # fmt: skip
FAR = 62.0
"""Least distance in RGB between a ground's colours and those of the things."""


def random_style(rng: np.random.Generator) -> Style:
    """A style at random: palette, ground, inside, outline, shadow, light and canvas.

    Colours stay near those that their words call up, and away from the ground.
    """
    kind = _one(rng, GROUNDS)
    dark = kind in DARK_ONLY or rng.random() < 0.3
    palette = _random_palette(rng)
    ground = _random_ground(rng, kind, dark, palette)
    glow = float(rng.uniform(10, 36)) if dark and rng.random() < 0.4 else 0.0
    fill = _random_fill(rng)
    if glow and rng.random() < 0.5:
        fill = Fill(fill.kind, fill.strength, fill.scale, float(rng.uniform(0.5, 0.9)))
    line = _random_line(rng, dark)
    shadow = _random_shadow(rng, dark)
    if not dark and line.width == 0 and shadow.kind == "none":
        shadow = Shadow("drop", 0.4, float(rng.uniform(3, 9)), (3, 4))  # white things show by it
    return Style(
        palette,
        ground,
        fill,
        line,
        shadow,
        _random_canvas(rng),
        glow=glow,
        core=float(rng.uniform(0.3, 0.9)) if glow and line.colour is None else 0.0,
        rounding=float(rng.choice((0.0, 0.08, 0.14, 0.22))),
    )


def _one(rng: np.random.Generator, choices):
    return choices[rng.integers(len(choices))]


def _random_palette(rng: np.random.Generator) -> Palette:
    base = _one(rng, PALETTES)
    shift, spread = rng.normal(0, 6, 3), rng.uniform(3, 12)

    def moved(rgb: Colour) -> Colour:
        return colour(np.array(rgb) + shift + rng.normal(0, spread, 3))

    return {word: moved(rgb) for word, rgb in base.items()}


def _random_ground(rng: np.random.Generator, kind: str, dark: bool, palette: Palette) -> Ground:
    """Four colours of kindred hues, apart from all of the palette."""
    best, room = _random_tones(rng, dark), -1.0
    things = np.array(list(palette.values()), np.float32)
    for _ in range(20):
        colours = _random_tones(rng, dark)
        away = np.array(colours, np.float32)[:, None] - things[None]
        nearest = float(np.sqrt((away**2).sum(-1)).min())
        if nearest > room:
            best, room = colours, nearest
        if room > FAR:
            break
    contrast = float(rng.uniform(0.15, 0.5))
    if kind == "paper":
        contrast *= 0.3
    return Ground(
        kind,
        best,
        contrast,
        float(rng.uniform(16, 34)),
        float(rng.uniform(0.5, 0.74)),
    )


def _random_tones(rng: np.random.Generator, dark: bool) -> Colours:
    hue, turn = rng.random(), rng.normal(0, 0.06)
    strong = rng.uniform(0.05, 0.65) if dark else rng.uniform(0.02, 0.4)
    low, high = (0.04, 0.34) if dark else (0.5, 0.95)
    first, last = rng.uniform(low, high, 2)
    if abs(first - last) > 0.3:
        last = first + 0.3 * np.sign(last - first)
    values = (first, last, (first + last) / 2 + rng.choice((-1, 1)) * rng.uniform(0.06, 0.14), last)
    tones = []
    for step, value in enumerate((*values[:3], values[3] - 0.08)):
        rgb = colorsys.hsv_to_rgb(
            (hue + turn * step) % 1, float(np.clip(strong + rng.normal(0, 0.04), 0, 0.7)),
            float(np.clip(value, 0.02, 0.96)),
        )  # fmt: skip
        tones.append(colour(255 * v for v in rgb))
    return tones[0], tones[1], tones[2], tones[3]


def _random_fill(rng: np.random.Generator) -> Fill:
    kind = _one(rng, FILLS)
    low, high = {"hatching": (0.3, 0.6), "grain": (0.06, 0.25), "wash": (0.2, 0.45)}.get(
        kind, (0.2, 0.5)
    )
    scale = rng.uniform(5, 9) if kind == "hatching" else rng.uniform(6, 12)
    opacity = rng.uniform(0.88, 1.0) if kind == "wash" else 1.0
    return Fill(kind, float(rng.uniform(low, high)), float(scale), float(opacity))


def _random_line(rng: np.random.Generator, dark: bool) -> Line:
    width = float(rng.choice((0.0, 0.0, 1.5, 2.2, 3.0, 4.0)))
    light = rng.random() < (0.4 if dark else 0.15)
    low, high = (215, 256) if light else (8, 70)
    drawn = colour(rng.integers(low, high, 3))
    return Line(
        width,
        None if rng.random() < 0.4 else drawn,
        float(rng.choice((-0.55, -0.35, 0.3))),
        float(rng.choice((0.0, 0.0, 0.5))),
        float(rng.choice((0.0, 0.0, 0.6, 1.4))),
    )


def _random_shadow(rng: np.random.Generator, dark: bool) -> Shadow:
    kind = _one(rng, ("none", "none", "drop", "drop", "long", "floor", "floor"))
    side = int(rng.choice((-5, -3, 0, 3, 5)))
    return Shadow(
        kind,
        float(rng.uniform(0.22, 0.5)),
        float(rng.uniform(1, 4) if kind == "long" else rng.uniform(2, 14)),
        (side, int(rng.integers(3, 9))),
        float(rng.choice((14, 30, 60))),
    )


def _random_canvas(rng: np.random.Generator) -> Canvas:
    """Mostly little: paper, grain, a vignette; now and then a lens, few tones, chalk or blocks."""
    rare = rng.random()
    flat = 0.07 < rare < 0.14
    return Canvas(
        paper=float(rng.choice((0.0, 0.0, 1.5, 2.5))) * (not flat),
        grain=float(rng.choice((0.0, 0.0, 2.0, 3.0))) * (not flat),
        vignette=float(rng.choice((0.0, 0.0, 0.15, 0.35))),
        chalk=float(rng.uniform(0.15, 0.45)) if rare > 0.92 else 0.0,
        pixels=int(rng.choice((2, 4))) if rare < 0.07 else 1,
        levels=int(rng.integers(7, 12)) if flat else 0,
        blur=float(rng.uniform(0.5, 1.0)) if 0.14 < rare < 0.3 else 0.0,
    )
