"""What must hold of the quality table, each decided by intervals that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]

STEPS = (1, 2, 4, 8)
TEACHER_STEPS = 50
STILLS, STACKED, ON_STUDENT = "stills_lora", "stills_lora+lcm", "stills_on_student"
ARTISTS = (STILLS, STACKED, ON_STUDENT)
"""What artists do today: a plain style LoRA on the base model, the same with a step LoRA beside it,
and one trained on top of the few-step student."""
WATERMARK_GONE = 0.1
"""Correlation with the stamp: public video has 0.92, true clips of random styles up to 0.04."""
LOWER_IS_BETTER = {"style_kid", "fd_style", "fd_video", "fd_teacher"}
OWN_COLUMN = {
    "no-disentangling": ("disentangled motion", "style_kid"),
    "no-mixed": ("mixed trajectory", "fd_style"),
    "no-discriminator": ("discriminator", "style_kid"),
}
"""An ablation, the idea it takes out, and the column that this idea is there for.

Raw latents hold on to the look of the video, and without an adversary no look is learned: style
distance. Without its own trajectories a student only ever starts from the teacher's dull clips:
true videos in the style (the style distance, where those cannot be rendered).
"""
BADNESS: dict[str, Callable[[float], float]] = {
    "style_kid": float,
    "fd_style": float,
    "colour": lambda value: -value,
    "shape": lambda value: -value,
    "motion": lambda value: -value,
    "flow_style_ratio": lambda value: abs(math.log(max(value, 1e-9))),
    "watermark": abs,
}
"""Columns in which one value is worse than another, and how bad a value is."""
EFFECTS = ("style_kid", "fd_style", "fd_video", "fd_teacher", "colour", "shape", "motion")


def who(row: Row) -> str:
    """The student's name, or the solver's: what a line of the table is called."""
    return row["student"] or row["method"]


def decide_claims(
    rows: Sequence[Row], references: Sequence[Row] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """The claims that ``rows`` can decide, and the texts of those whose rows are missing;
    ``references`` are the rows of true videos.

    A claim has "claim", "holds" and "values": by number of steps the compared numbers with their
    intervals, "holds" (the intervals are apart) and "point" (the numbers alone would say so).
    """
    table = _Table(rows, references)
    decided: list[dict[str, Any]] = []
    missing: list[str] = []
    for text, values in (
        *_without_style(table),
        *_with_style(table),
        *_against_artists(table),
        *_ideas(table),
    ):
        if values is None:
            missing.append(text)
        else:
            holds = values.pop("holds", None)
            parts = [part for part in values.values() if "holds" in part]
            whole = all(part["holds"] for part in parts) if holds is None else holds
            decided.append({"claim": text, "holds": bool(whole), "values": values})
    return decided, missing


Values = dict[str, Any] | None
Compare = Callable[[int], dict[str, Any] | None]


class _Table:
    def __init__(self, rows: Sequence[Row], references: Sequence[Row]):
        known = (*rows, *references)
        self.rows = {(who(row), row["style"], row["steps"]): row for row in known}
        self.names = list(dict.fromkeys(who(row) for row in rows))
        trained = ((who(row), row["trained_on"]) for row in rows)
        self.trained_on = {name: style for name, style in trained if style}

    def number(
        self, name: str, style: str | None, steps: int | None, column: str
    ) -> list[float] | None:
        """``[value, low, high]``; None where there is no such row or number."""
        row = self.rows.get((name, style, steps), {})
        if row.get(column) is None:
            return None
        return [row[column], *row[f"{column}_ci"]]

    def has(self, column: str, style: str) -> bool:
        return any(r["style"] == style and r.get(column) is not None for r in self.rows.values())


def _by_steps(compare: Compare) -> Values:
    found = {str(steps): compare(steps) for steps in STEPS}
    return None if any(part is None for part in found.values()) else found


def _below(left: str, a: list[float] | None, right: str, b: list[float] | None, factor: float = 1):
    """``a <= factor * b``, intervals apart."""
    if a is None or b is None:
        return None
    return {left: a, right: b, "holds": a[2] <= factor * b[1], "point": a[0] <= factor * b[0]}


def _above(left: str, a: list[float] | None, right: str, b: list[float] | None, factor: float):
    if a is None or b is None:
        return None
    return {left: a, right: b, "holds": a[1] >= factor * b[2], "point": a[0] >= factor * b[0]}


def _within(name: str, a: list[float] | None, low: float, high: float):
    if a is None:
        return None
    point = low <= a[0] <= high
    return {name: a, "holds": low <= a[1] and a[2] <= high, "point": point}


def _without_style(table: _Table) -> Iterator[tuple[str, Values]]:
    suffixes = ["", *(["-videos"] if "mcm-videos" in table.names else [])]
    for suffix in suffixes:
        mcm, lcm = f"mcm{suffix}", f"lcm{suffix}"
        pairs = ((mcm, lcm), (lcm, "dpmpp"), (lcm, "ddim"))
        for better, worse in pairs:

            def compare(steps: int, better: str = better, worse: str = worse):
                a, b = (table.number(n, None, steps, "fd_video") for n in (better, worse))
                return _below(better, a, worse, b)

            yield f"{better} < {worse} in Frechet distance to real videos", _by_steps(compare)


def _with_style(table: _Table) -> Iterator[tuple[str, Values]]:
    """The goals of every student of a style but the ablations."""
    for name, style in table.trained_on.items():
        if not name.startswith(f"mcm-{style}"):
            continue
        changed = name.removeprefix(f"mcm-{style}").lstrip("-")
        if changed and changed != "uncaptioned" and not changed.endswith("-images"):
            continue
        for goal, compare in _style_goals(table, name, style).items():
            yield f"{name}: {goal}", _by_steps(compare)


def _style_goals(table: _Table, name: str, style: str) -> dict[str, Compare]:
    teacher = f"teacher, {TEACHER_STEPS} steps"

    def own(steps: int, column: str) -> list[float] | None:
        return table.number(name, style, steps, column)

    def against_lcm(column: str, factor: float) -> Compare:
        return lambda steps: _below(
            name, own(steps, column), "lcm", table.number("lcm", style, steps, column), factor
        )

    def against_teacher(column: str, factor: float) -> Compare:
        best = table.number("ddim", style, TEACHER_STEPS, column)
        return lambda steps: _above(name, own(steps, column), teacher, best, factor)

    goals = {
        "style distance <= 0.30 x the LCM student's": against_lcm("style_kid", 0.30),
        "colour >= 0.95 x the teacher's": against_teacher("colour", 0.95),
        "shape >= 0.9 x the teacher's": against_teacher("shape", 0.9),
        "motion >= 0.9 x the teacher's": against_teacher("motion", 0.9),
        "flow within 0.8 to 1.25 x the teacher's": lambda steps: _within(
            name, own(steps, "flow_ratio"), 0.8, 1.25
        ),
        f"the watermark is gone (correlation within {WATERMARK_GONE})": lambda steps: _within(
            name, own(steps, "watermark"), -WATERMARK_GONE, WATERMARK_GONE
        ),
    }
    if table.has("fd_style", style):
        text = "Frechet distance to true videos in the style <= 0.5 x the LCM student's"
        goals[text] = against_lcm("fd_style", 0.5)
    if table.has("flow_style_ratio", style):
        goals["flow within 0.8 to 1.25 x that of true videos in the style"] = lambda steps: _within(
            name, own(steps, "flow_style_ratio"), 0.8, 1.25
        )
    return goals


def _against_artists(table: _Table) -> Iterator[tuple[str, Values]]:
    """At each number of steps the student against what artists do, whose plain LoRA without a step
    LoRA needs all of the teacher's.
    """
    for style in dict.fromkeys(table.trained_on.values()):
        ours = f"mcm-{style}"
        others = [f"{method}-{style}" for method in ARTISTS]
        for theirs in others if ours in table.names else ():
            if theirs not in table.names:
                continue
            for column, words in _DISTANCES.items():
                if not table.has(column, style):
                    continue
                compare = _nearer(table, style, ours, theirs, column)
                yield f"{ours} < {theirs} in {words}", _by_steps(compare)


_DISTANCES = {
    "style_kid": "style distance",
    "fd_style": "Frechet distance to true videos in the style",
}


def _nearer(table: _Table, style: str, ours: str, theirs: str, column: str) -> Compare:
    def compare(steps: int) -> dict[str, Any] | None:
        others = TEACHER_STEPS if theirs.startswith(f"{STILLS}-") else steps
        a, b = table.number(ours, style, steps, column), table.number(theirs, style, others, column)
        return _below(ours, a, theirs, b)

    return compare


def _ideas(table: _Table) -> Iterator[tuple[str, Values]]:
    """Each idea's column: worse without it at one number of steps or more, better at none."""
    for style in dict.fromkeys(table.trained_on.values()):
        full = f"mcm-{style}"
        for change, (idea, column) in OWN_COLUMN.items():
            without = f"{full}-{change}"
            if without not in table.names:
                continue
            column = column if table.has(column, style) else "style_kid"
            text = f"{full}: without the {idea} `{column}` is worse"
            yield text, _effect(table, full, without, style, column)


def _effect(table: _Table, full: str, without: str, style: str, column: str) -> Values:
    def verdict(steps: int, name: str) -> str | None:
        a, b = (table.number(student, style, steps, name) for student in (full, without))
        if a is None or b is None:
            return None
        if name not in LOWER_IS_BETTER:
            a, b = b, a
        return "worse" if a[2] < b[1] else "better" if b[2] < a[1] else "same"

    verdicts = {steps: verdict(steps, column) for steps in STEPS}
    if None in verdicts.values():
        return None
    found: dict[str, Any] = {
        str(steps): {
            full: table.number(full, style, steps, column),
            without: table.number(without, style, steps, column),
            "verdict": verdicts[steps],
        }
        for steps in STEPS
    }
    found["effects"] = {
        name: {str(steps): verdict(steps, name) for steps in STEPS}
        for name in EFFECTS
        if verdict(STEPS[0], name) is not None
    }
    found["holds"] = "worse" in verdicts.values() and "better" not in verdicts.values()
    return found


def claims_text(claims: Sequence[dict[str, Any]], missing: Sequence[str] = ()) -> str:
    """A readable list: each claim, whether it holds, and the numbers by steps."""
    lines = []
    for claim in claims:
        lines.append(f"[{'holds' if claim['holds'] else 'FAILS'}] {claim['claim']}")
        for steps, part in claim["values"].items():
            if steps == "effects":
                shown = (f"{k} {'/'.join(map(str, v.values()))}" for k, v in part.items())
                lines.append(f"    1/2/4/8 steps: {', '.join(shown)}")
                continue
            numbers = [f"{k} {_shown(v)}" for k, v in part.items() if isinstance(v, list)]
            lines.append(f"    {steps} steps: {' | '.join(numbers)}  {_mark(part)}")
    held = sum(claim["holds"] for claim in claims)
    lines.append(f"{held} of {len(claims)} claims hold; {len(missing)} have no rows yet.")
    lines += [f"    not measured: {text}" for text in missing]
    return "\n".join(lines)


def _mark(part: dict[str, Any]) -> str:
    if "verdict" in part:
        return part["verdict"]
    return "yes" if part["holds"] else "by value only" if part["point"] else "no"


def _shown(numbers: Sequence[float]) -> str:
    value, low, high = (f"{number:.4g}" for number in numbers)
    return f"{value} [{low}, {high}]"


def worst_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each method that was trained on two styles or more, at each number of steps, the worst
    value over the styles in each column of `BADNESS`, with its interval and its style.

    Ablations and other folders of a style are left out.
    """
    own = [row for row in rows if who(row) == f"{row['method']}-{row['style']}"]
    found = []
    for method, steps in dict.fromkeys((row["method"], row["steps"]) for row in own):
        same = [row for row in own if (row["method"], row["steps"]) == (method, steps)]
        if len(same) < 2:
            continue
        worst: dict[str, Any] = {"method": method, "steps": steps, "styles": len(same)}
        for column in BADNESS:
            row = _worst(same, column)
            if row is not None:
                worst |= {column: row[column], f"{column}_ci": row[f"{column}_ci"]}
                worst[f"{column}_style"] = row["style"]
        found.append(worst)
    return found


def _worst(rows: Sequence[Row], column: str) -> Row | None:
    known = [row for row in rows if row.get(column) is not None]
    return max(known, key=lambda row: BADNESS[column](row[column]), default=None)
