"""The quality table for people: Markdown, and a plot of style against motion."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from quality_claims import BADNESS, STEPS, TEACHER_STEPS, who

Row = dict[str, Any]

COLUMNS = {
    "style_kid": ("style distance", 3),
    "fd_style": ("Frechet to true style videos", 1),
    "fd_video": ("Frechet to real videos", 1),
    "fd_teacher": ("Frechet to teacher", 1),
    "colour": ("colour", 2),
    "shape": ("shape", 2),
    "motion": ("motion", 2),
    "flow_ratio": ("flow / teacher's", 2),
    "flow_style_ratio": ("flow / true style's", 2),
    "frame_consistency": ("frame consistency", 3),
    "watermark": ("watermark", 2),
}
BRIEF = tuple(name for name in COLUMNS if name not in ("fd_teacher", "frame_consistency"))
"""Columns of the short table; Frechet distance to real videos only where there is no style."""
NAMES = {"ddim": "teacher, DDIM", "dpmpp": "teacher, DPM++ 2M"}
SMALLEST = 1e-3
"""An unbiased distance may be zero or below; a logarithmic axis has no place for that."""
_HEAVY = {"lcm": "#444444", "mcm": "#1f77b4"}


def markdown(
    rows: Sequence[Row],
    claims: Sequence[dict[str, Any]],
    references: Sequence[Row],
    worst: Sequence[Row] = (),
) -> str:
    """For no style and each style a short table, a line a student, and a full one with value +-
    half of the 95 % interval; then the worst of all styles, and the claims.
    """
    parts = []
    for style in dict.fromkeys(row["style"] for row in rows):
        title = "Without style images" if style is None else f"Style `{style}`"
        own = [row for row in (*rows, *references) if row["style"] == style]
        parts.append(f"### {title}\n\n{_short(own)}\n{_table(own)}")
    if worst:
        parts.append(f"### The worst of all styles\n\n{_worst(worst)}")
    if claims:
        lines = ["| claim | holds | at steps |", "|---|---|---|"]
        for claim in claims:
            verdict = "**yes**" if claim["holds"] else "no"
            lines.append(f"| {claim['claim']} | {verdict} | {_steps_of(claim['values'])} |")
        parts.append("### Claims\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _steps_of(values: dict[str, Any]) -> str:
    """The numbers of steps at which a claim holds, intervals apart."""
    good = (k for k, v in values.items() if v.get("holds") or v.get("verdict") == "worse")
    return ", ".join(good) or "none"


def _short(rows: Sequence[Row]) -> str:
    """A line a solver or student, its values at all numbers of steps, fewest first."""
    filled = [name for name in BRIEF if any(row.get(name) is not None for row in rows)]
    columns = [c for c in filled if c != "fd_video" or "style_kid" not in filled]
    lines = [_line(["", "steps", *(COLUMNS[name][0] for name in columns)])]
    lines.append(_line(["---"] * (len(columns) + 2)))
    for name in dict.fromkeys(map(who, rows)):
        own = sorted((r for r in rows if who(r) == name), key=lambda row: row["steps"] or 0)
        steps = " / ".join(str(row["steps"] or "-") for row in own)
        cells = [" / ".join(_brief(row, column) for row in own) for column in columns]
        lines.append(_line([NAMES.get(name, name), steps, *cells]))
    return "\n".join(lines) + "\n"


def _brief(row: Row, column: str) -> str:
    """The value without its leading zero; distances of clips and flow to fewer digits."""
    value = row.get(column)
    if value is None:
        return "-"
    places = {"fd_style": 0, "flow_ratio": 1, "flow_style_ratio": 1}.get(column, COLUMNS[column][1])
    text = f"{round(value, places) + 0.0:.{places}f}"  # never "-0"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _table(rows: Sequence[Row]) -> str:
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    head = ["", "steps", *(COLUMNS[name][0] for name in columns)]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        steps = "" if row["steps"] is None else str(row["steps"])
        name = NAMES.get(who(row), f"`{who(row)}`" if row["student"] else who(row))
        lines.append(_line([name, steps, *(_cell(row, column) for column in columns)]))
    return "\n".join(lines) + "\n"


def _worst(worst: Sequence[Row]) -> str:
    """A line a method and number of steps, each value with its interval and its style."""
    columns = [name for name in BADNESS if any(name in row for row in worst)]
    lines = [_line(["", "steps", "styles", *(COLUMNS[name][0] for name in columns)])]
    lines.append(_line(["---"] + ["---:"] * (len(columns) + 2)))
    for row in worst:
        cells = [f"{_cell(row, c)} ({row[f'{c}_style']})" if c in row else "-" for c in columns]
        lines.append(_line([row["method"], str(row["steps"]), str(row["styles"]), *cells]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, column: str) -> str:
    value, places = row.get(column), COLUMNS[column][1]
    if value is None:
        return "-"
    low, high = row[f"{column}_ci"]
    return f"{value:.{places}f} ± {(high - low) / 2:.{places}f}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Style distance (left is better) against motion accuracy (up is better), a panel a style.

    One line a student through 1, 2, 4 and 8 steps, distances on a logarithmic axis; without any
    style the panel shows the Frechet distance to real videos. The dotted line is the teacher in 50
    steps.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = [s for s in dict.fromkeys(row["style"] for row in rows) if s is not None] or [None]
    across = min(len(styles), 2)
    down = -(-len(styles) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(6.4 * across, 5.2 * down), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(styles) :]:
        axis.remove()
    for axis, style in zip(axes.flat, styles, strict=False):
        _panel(axis, [row for row in rows if row["style"] == style], style)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[Row], style: str | None) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    across = "fd_video" if style is None else "style_kid"
    colours = cycle(("C1", "C2", "C4", "C5", "C6", "C8", "C9", "C7"))
    for name in dict.fromkeys(who(row) for row in rows if row["student"]):
        line = {row["steps"]: row for row in rows if who(row) == name}
        at = [line[s] for s in (*STEPS, TEACHER_STEPS) if s in line]
        shown = [row for row in at if row.get("motion") is not None]
        if not shown or shown[0].get(across) is None:
            continue
        main = name == f"mcm-{style}"
        colour = "#d62728" if main else _HEAVY.get(name) or next(colours)
        x = [max(row[across], SMALLEST) for row in shown]
        y = [row["motion"] for row in shown]
        axis.plot(x, y, "-o", color=colour, label=name, lw=2.2 if main else 1.2, ms=4)
        for row, left, up in zip(shown, x, y, strict=True):
            offset = {"xytext": (3, 4), "textcoords": "offset points", "fontsize": 8}
            axis.annotate(str(row["steps"]), (left, up), color=colour, **offset)
    teacher = [r for r in rows if who(r) == "ddim" and r["steps"] == TEACHER_STEPS]
    if teacher and teacher[0].get("motion") is not None:
        axis.axhline(teacher[0]["motion"], color="#999999", ls=":", lw=1.2, label="teacher, 50")
    label = "Frechet distance to real videos" if style is None else "style distance (KID)"
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(f"{label}, lower is better")
    axis.set_ylabel("motion accuracy")
    axis.set_title("without style images" if style is None else f"style: {style}")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
