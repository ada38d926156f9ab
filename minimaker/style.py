"""What a drawing style is made of: numbers and colours only. ``paint.py`` draws with them.

Colours are RGB 0-255; widths, lengths and periods are pixels of a 128 px frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Colour = tuple[int, int, int]
Colours = tuple[Colour, Colour, Colour, Colour]
Palette = dict[str, Colour]


def colour(values: Iterable[float]) -> Colour:
    """Three numbers as a colour, cut to 0-255."""
    r, g, b = (min(max(int(value), 0), 255) for value in values)
    return r, g, b


PLAIN: Palette = {
    "red": (206, 52, 46),
    "green": (56, 152, 70),
    "blue": (50, 92, 196),
    "yellow": (228, 194, 58),
    "purple": (132, 64, 166),
    "white": (236, 236, 232),
}
POSTER: Palette = {
    "red": (228, 62, 50),
    "green": (34, 154, 98),
    "blue": (40, 98, 212),
    "yellow": (252, 200, 48),
    "purple": (126, 62, 176),
    "white": (253, 251, 246),
}
NEON: Palette = {
    "red": (255, 54, 72),
    "green": (64, 255, 120),
    "blue": (64, 126, 255),
    "yellow": (255, 232, 72),
    "purple": (190, 72, 255),
    "white": (240, 246, 255),
}
INK: Palette = {
    "red": (204, 66, 52),
    "green": (84, 148, 92),
    "blue": (62, 104, 172),
    "yellow": (232, 188, 74),
    "purple": (126, 84, 152),
    "white": (252, 250, 242),
}
WATER: Palette = {
    "red": (222, 76, 70),
    "green": (76, 166, 104),
    "blue": (66, 124, 208),
    "yellow": (246, 202, 84),
    "purple": (146, 92, 188),
    "white": (254, 253, 250),
}
CHALK: Palette = {
    "red": (240, 104, 98),
    "green": (118, 206, 130),
    "blue": (110, 164, 240),
    "yellow": (248, 222, 112),
    "purple": (190, 134, 232),
    "white": (244, 244, 238),
}
PIXEL: Palette = {
    "red": (224, 60, 64),
    "green": (64, 176, 84),
    "blue": (58, 108, 220),
    "yellow": (252, 208, 64),
    "purple": (150, 72, 190),
    "white": (250, 250, 244),
}
PALETTES = (PLAIN, POSTER, NEON, INK, WATER, CHALK, PIXEL)


@dataclass(frozen=True)
class Ground:
    """What lies behind the things: a ``kind`` of ``grounds.KINDS`` in four ``colours``.

    Colours go from top to bottom or from far to near; ``contrast`` (0..1) and ``scale`` (px)
    belong to its marks, ``horizon`` (0..1) is the height of its skyline.
    """

    kind: str = "plain"
    colours: Colours = ((200, 200, 200),) * 4
    contrast: float = 0.1
    scale: float = 24.0
    horizon: float = 0.62


@dataclass(frozen=True)
class Fill:
    """The inside of a thing: a ``kind`` of ``fills.KINDS``, how strong and how wide its marks are,
    and how much of the ground they hide.
    """

    kind: str = "flat"
    strength: float = 0.3
    scale: float = 6.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Line:
    """An outline; without a ``colour`` it takes the thing's, ``tone`` darker (-1) or lighter (1).

    ``brush`` (0..1) lets its width swell, ``rough`` (px) lets the shape's edge wander.
    """

    width: float = 0.0
    colour: Colour | None = None
    tone: float = -0.5
    brush: float = 0.0
    rough: float = 0.0


@dataclass(frozen=True)
class Shadow:
    """A thing's shadow: "none", "drop" (at ``offset``), "long" (a band to the lower right of about
    ``reach`` px) or "floor" (below the thing, fainter as it rises). ``soft`` is the width of the
    edge.
    """

    kind: str = "none"
    strength: float = 0.35
    soft: float = 8.0
    offset: tuple[int, int] = (4, 6)
    reach: float = 30.0


@dataclass(frozen=True)
class Canvas:
    """What the whole picture is made on; none of it moves with the things.

    ``paper`` is the contrast of fine fibres, ``grain`` of a fine noise, both 0..255;
    ``vignette`` (0..1) darkens the corners; ``chalk`` (0..1) lets strokes break up;
    ``halftone`` is the period of printed dots, ``pixels`` the side of a block, ``levels`` how many
    tones a channel has (0: all), ``blur`` a lens's sigma. ``colours``: the only ones that blocks
    may have.
    """

    paper: float = 0.0
    grain: float = 0.0
    vignette: float = 0.0
    chalk: float = 0.0
    halftone: float = 0.0
    pixels: int = 1
    levels: int = 0
    blur: float = 0.0
    colours: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class Style:
    """All that makes a look. ``glow`` is the reach of light around a thing in px, ``core`` how
    white the middle of its outline burns (0..1), ``rounding`` the radius of corners as a part of
    the thing's.
    """

    palette: Palette
    ground: Ground = field(default_factory=Ground)
    fill: Fill = field(default_factory=Fill)
    line: Line = field(default_factory=Line)
    shadow: Shadow = field(default_factory=Shadow)
    canvas: Canvas = field(default_factory=Canvas)
    glow: float = 0.0
    core: float = 0.0
    rounding: float = 0.1

    @property
    def edge(self) -> float:
        """Width of an edge in px: blocks take what their middle shows, so theirs are hard."""
        return 1.0 if self.canvas.pixels == 1 else 0.01

    @property
    def margin(self) -> float:
        """How far around a thing the style draws, in px."""
        reach = {
            "none": 0.0,
            "drop": self.shadow.soft / 2,
            "long": self.shadow.reach + self.shadow.soft / 2,
            "floor": 0.0,
        }[self.shadow.kind]
        return max(reach, self.glow, self.line.width + self.line.rough) + 2
