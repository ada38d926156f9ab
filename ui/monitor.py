"""The monitor: facts, curves and log of one run, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .charts import Level, Line, line_chart, smooth
from .status import RunStatus, duration, notice, problem

LOG_BYTES = 24_000
MOTION_ALARM = 0.5
"""Below this fraction of the original's flow there is too little movement, as in the trainer."""
Events = Sequence[dict[str, Any]]


def monitor(status: RunStatus | None, events: Events) -> str:
    """The numbers of the moment and what previews measured."""
    if status is None:
        return (
            '<p class="empty">No data yet. Start a training on the <b>Train</b> tab; its curves '
            "appear here.</p>"
        )
    alarm = _alarm(events) if status.busy else ""
    return "".join((problem(status), alarm, facts(status, events), measured(status, events)))


def _alarm(events: Events) -> str:
    """The last preview's alarm, if it raised one. Of a finished run the best step is exported, so
    there is nothing left to do about it.
    """
    previews = [event for event in events if event["kind"] == "preview"]
    alarms = [event for event in events if event["kind"] == "alarm"]
    if not previews or not alarms or alarms[-1].get("step") != previews[-1].get("step"):
        return ""
    advice = (
        "Nothing, if the next preview moves again: the best step is exported, not the last. If it "
        "stays low, press Stop & save, then 'Use these settings again' on the Runs tab, and lower "
        "'Style against motion' on the Train tab."
    )
    return notice("warn", "Too little movement", str(alarms[-1].get("message", "")), advice)


def facts(status: RunStatus, events: Events) -> str:
    """The numbers of the moment."""
    state = status.state
    skipped = sum(event["kind"] == "skipped" for event in events)
    pace = "-" if not state.seconds_per_step else f"{state.seconds_per_step:.2f} s per step"
    memory = "-" if not state.memory_gib else f"{state.memory_gib:.2f} GiB"
    rows = [
        ("Status", status.word),
        ("Step", f"{state.step:,} of {state.steps:,}" if state.steps else "-"),
        ("Time left", duration(state.eta_seconds) if status.busy else "-"),
        ("Speed", pace),
        ("Memory", memory),
        ("Skipped steps", str(skipped)),
    ]
    cells = "".join(f"<div><span>{escape(k)}</span><b>{escape(v)}</b></div>" for k, v in rows)
    said = f'<p class="quiet">{escape(state.message)}</p>' if state.message else ""
    exported = exported_step(events)
    best = (
        f'<p class="quiet">The exported LoRA is from <b>step {exported:,}</b>, the best in '
        "movement, style and content together.</p>"
        if exported is not None
        else ""
    )
    return f'<div class="facts">{cells}</div>{said}{best}'


def exported_step(events: Events) -> int | None:
    """The step of the LoRA that was written last; None where none was."""
    steps = [event["step"] for event in events if event["kind"] == "export" and "step" in event]
    return int(steps[-1]) if steps else None


def measured(status: RunStatus, events: Events) -> str:
    """Movement, style and content of the previews against the original, as charts."""
    previews = [event for event in events if event["kind"] == "preview"]
    waiting = "The first point comes with the first preview."
    if previews:
        waiting = "This run's previews did not measure it."
    elif not status.busy:
        waiting = "This run made no preview."
    drawn = (
        line_chart(
            "Movement kept", _by_steps(previews, "motion_kept"), percent=True, from_zero=True,
            levels=(Level("the original's", 1.0), Level("too little", MOTION_ALARM, alarm=True)),
            y_title="of the original's movement",
            help_text="How much your clips move, compared with the original in 50 steps. It "
            "should stay near or above 100 %; bold outlines raise it, dark pictures lower it.",
            empty=waiting,
        ),
        line_chart(
            "Style reached", _by_steps(previews, "style_reached"), percent=True,
            levels=(Level("your images", 1.0), Level("the original's look", 0.0)),
            y_title="of the way to your images",
            help_text="How close your frames are to the look of your images (100 %); the "
            "original's look is 0 %. It should rise; 70 to 90 % is good.", empty=waiting,
        ),
        line_chart(
            "Content kept", _by_steps(previews, "content_kept"), percent=True,
            levels=(Level("nothing of it", 0.0),),
            y_title="of the original's content",
            help_text="Whether your frames still show the same content as the original, whatever "
            "the style. It should stay level; if it falls, pictures lose their "
            "shapes.", empty=waiting,
        ),
    )  # fmt: skip
    return f'<div class="charts">{"".join(drawn)}</div>'


def losses(status: RunStatus | None, events: Events) -> str:
    """The losses, as charts."""
    steps = [event for event in events if event["kind"] == "step"]
    if status is None or not steps:
        return '<p class="quiet">The curves begin with the first training step.</p>'
    drawn = (
        line_chart(
            "Motion loss", _loss(steps, "consistency", "motion consistency", 0), from_zero=True,
            y_title="loss",
            help_text="How far clips in few steps are from the original in many. It should fall "
            "quickly, then slowly. Thin: each training step; bold: average.",
        ),
        line_chart(
            "Style losses",
            [*_loss(steps, "adversarial", "student", 1),
             *_loss(steps, "discriminator", "discriminator", 2),
             *_loss(steps, "caption", "captions", 3)],
            y_title="loss",
            help_text="The few-step model (student) and the discriminator, which tells your "
            "images from the student's frames, compete. Both curves should stay level; if one "
            "rises or falls steadily, style learning fails.",
        ),
    )  # fmt: skip
    return f'<div class="charts">{"".join(drawn)}</div>'


def _loss(events: Events, name: str, label: str, colour: int) -> list[Line]:
    points = [(e["step"], e[name]) for e in events if isinstance(e.get(name), int | float)]
    return [Line(label, points, colour, thin=True), Line(label, smooth(points), colour)]


def _by_steps(previews: Events, name: str) -> list[Line]:
    """One line for every number of sampling steps."""
    counts = sorted({int(steps) for event in previews for steps in event.get(name) or {}})
    lines = []
    for colour, count in enumerate(counts):
        points = [
            (event["step"], event[name][str(count)])
            for event in previews
            if str(count) in (event.get(name) or {})
        ]
        label = f"{count} step{'s' if count > 1 else ''}"
        lines.append(Line(label, points, colour % 6, dots=True))
    return lines


def log_tail(path: Path | None) -> str:
    """The end of ``log.txt`` in a box that stays at the bottom while it grows."""
    if path is None or not path.is_file():
        return '<div class="log"><pre>The log appears when training starts.</pre></div>'
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return f'<div class="log" tabindex="0"><pre>{escape(text.strip())}</pre></div>'
