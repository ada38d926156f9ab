"""Line charts as SVG text: no library, follows light and dark, and has a tooltip on every point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 68, 12, 14, 46
X_TITLE = "training step"
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x; ``colour`` is 0 to 5, ``thin`` is drawn faintly."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    thin: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A labelled horizontal line at ``y``."""

    label: str
    y: float
    alarm: bool = False


def smooth(points: Sequence[tuple[float, float]], decay: float = 0.93) -> list[tuple[float, float]]:
    """Running mean of y, corrected for its start (as Adam does)."""
    mean, weight, smoothed = 0.0, 0.0, []
    for x, y in points:
        mean = decay * mean + (1 - decay) * y
        weight = decay * weight + (1 - decay)
        smoothed.append((x, mean / weight))
    return smoothed


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points, evenly taken, the last one always among them."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    return [*points[-1::-step]][::-1]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    help_text: str,
    y_title: str,
    levels: Sequence[Level] = (),
    percent: bool = False,
    from_zero: bool = False,
    empty: str = "No data yet.",
) -> str:
    """An HTML figure; ``empty`` is shown in place of a chart without points. ``y_title`` is the
    title of the vertical axis, the other one is `X_TITLE`.
    """
    lines = [line for line in lines if line.points]
    head = f"<figcaption><b>{escape(title)}</b><span>{escape(help_text)}</span></figcaption>"
    if not lines:
        return f'<figure class="chart">{head}<p class="empty">{escape(empty)}</p></figure>'
    frame = _Frame.around(lines, levels, from_zero)
    drawn = [frame.grid(percent, y_title), *(frame.level(level) for level in levels)]
    drawn += [frame.line(line, percent) for line in lines]
    told = _in_words(title, lines, percent)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">'
    return f'<figure class="chart">{head}{svg}{"".join(drawn)}</svg>{_legend(lines)}</figure>'


@dataclass(frozen=True)
class _Frame:
    """The ranges that are drawn."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, lines: Sequence[Line], levels: Sequence[Level], from_zero: bool) -> _Frame:
        xs = [x for line in lines for x, _ in line.points]
        # A single spike must not flatten everything else.
        ys = sorted(y for line in lines for _, y in line.points)
        low, high = ys[int(0.005 * (len(ys) - 1))], ys[math.ceil(0.995 * (len(ys) - 1))]
        low = min([low, *(level.y for level in levels), *([0.0] if from_zero else [])])
        high = max([high, *(level.y for level in levels)])
        pad = 0.06 * (high - low) or abs(high) * 0.1 or 0.1
        bottom = low if from_zero and low == 0 else low - pad
        x1 = max(xs) if max(xs) > min(xs) else min(xs) + 1
        return cls(min(xs), x1, bottom, high + pad)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        part = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    def grid(self, percent: bool, y_title: str) -> str:
        parts = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
                         f'y2="{y:.1f}"/>')  # fmt: skip
            shown = f"{100 * value:.0f} %" if percent else f"{value:.3g}"
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
        for value in ticks(self.x0, self.x1, whole=True):
            parts.append(f'<text x="{self.x(value):.1f}" y="{HEIGHT - 28}" text-anchor="middle">'
                         f"{value:g}</text>")  # fmt: skip
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
                     f"{X_TITLE}</text>")  # fmt: skip
        centre = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text class="axis" transform="translate(13 {centre:.0f}) rotate(-90)" '
                     f'text-anchor="middle">{escape(y_title)}</text>')  # fmt: skip
        return "".join(parts)

    def level(self, level: Level) -> str:
        y, kind = self.y(level.y), "alarm" if level.alarm else "level"
        return (
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="{kind}" x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">'
            f"{escape(level.label)}</text>"
        )

    def line(self, line: Line, percent: bool) -> str:
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in thinned(line.points))
        kind = f"c{line.colour}{' thin' if line.thin else ''}"
        drawn = f'<polyline class="{kind}" points="{places}"/>'
        if not line.dots:
            return drawn
        for x, y in line.points:
            shown = f"{100 * y:.0f} %" if percent else f"{y:.3g}"
            title = f"<title>step {x:g}: {escape(line.label)} {shown}</title>"
            drawn += (f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.5">'
                      f"{title}</circle>")  # fmt: skip
        return drawn


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def _in_words(title: str, lines: Sequence[Line], percent: bool) -> str:
    """The chart for a screen reader: each line's newest point."""
    newest = [(line.label, *line.points[-1]) for line in lines if not line.thin]
    said = "; ".join(
        f"{label} {f'{100 * y:.0f} %' if percent else f'{y:.3g}'} at step {x:g}"
        for label, x, y in newest
    )
    return f"{title}: {said}"


def _legend(lines: Sequence[Line]) -> str:
    named = [line for line in lines if not line.thin]
    keys = "".join(f'<span class="c{line.colour}">{escape(line.label)}</span>' for line in named)
    return f'<div class="legend">{keys}</div>'
