"""Finds the best step of a run, in motion and style together, from its previews."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

MARGIN = 1.1
"""An earlier step must score this many times the last one's score to be preferred: a preview has
only two or three clips.
"""


def preview_score(event: Mapping[str, Any]) -> float | None:
    """Motion times style times content of a "preview" event, the mean over its numbers of steps; 1
    is perfect.

    Motion is the student's flow over the teacher's, or its inverse where there is too much; style
    the part of the way that is done; content what is left of the teacher's (1 in the events of old
    runs, which do not say). None where the preview measured no style: then there is nothing to
    weigh motion against.
    """
    kept, reached = event.get("motion_kept") or {}, event.get("style_reached") or {}
    content = event.get("content_kept") or {}
    known = [steps for steps in reached if kept.get(steps) is not None]
    if not known:
        return None
    parts = [
        min(kept[steps], 1 / max(kept[steps], 1e-6))
        * _share(reached[steps])
        * _share(content.get(steps, 1.0))
        for steps in known
    ]
    return sum(parts) / len(parts)


def _share(value: float | None) -> float:
    return min(max(value or 0.0, 0.0), 1.0)


def best_step(events: Sequence[Mapping[str, Any]], steps: Collection[int]) -> int | None:
    """The one of ``steps`` (those with a checkpoint) whose preview scores best.

    The last of them unless an earlier one beats it clearly (`MARGIN`); None where no preview of
    ``steps`` can be scored. ``events`` are "preview" events; a later one of a step replaces it.
    """
    scored = ((event["step"], preview_score(event)) for event in events if event["step"] in steps)
    known = {step: score for step, score in scored if score is not None}
    if not known:
        return None
    last, best = max(known), max(known, key=lambda step: (known[step], step))
    return best if known[best] > MARGIN * known[last] else last
