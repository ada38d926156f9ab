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
"""As in the trainer's previews: under this part of the teacher's flow, motion is dying."""
Events = Sequence[dict[str, Any]]


def monitor(status: RunStatus | None, events: Events) -> str:
    """Everything above the log."""
    if status is None:
        return (
            '<p class="empty">Nothing to watch yet. Start a training on the <b>Train</b> tab; its '
            "curves appear here.</p>"
        )
    return "".join((problem(status), _alarm(events), facts(status, events), charts(status, events)))


def _alarm(events: Events) -> str:
    """The last preview's alarm, if it raised one."""
    previews = [event for event in events if event["kind"] == "preview"]
    alarms = [event for event in events if event["kind"] == "alarm"]
    if not previews or not alarms or alarms[-1].get("step") != previews[-1].get("step"):
        return ""
    advice = (
        "Stop, clone the run, and on the Train tab lower 'Style against motion' "
        "(adversarial.ratio) or raise the weight of motion. On the Export tab choose an earlier "
        "checkpoint."
    )
    return notice("bad", "Motion is dying", str(alarms[-1].get("message", "")), advice)


def facts(status: RunStatus, events: Events) -> str:
    """The numbers of the moment."""
    state = status.state
    skipped = sum(event["kind"] == "skipped" for event in events)
    pace = "-" if not state.seconds_per_step else f"{state.seconds_per_step:.2f} s a step"
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
    return f'<div class="facts">{cells}</div>{said}'


def charts(status: RunStatus, events: Events) -> str:
    """Four figures: motion kept, style reached, and the losses behind them."""
    steps = [event for event in events if event["kind"] == "step"]
    previews = [event for event in events if event["kind"] == "preview"]
    waiting = "The first point comes with the first preview."
    if status.run.config_path.is_file() and not steps:
        waiting = "The first point comes with the first preview; the teacher is being prepared."
    drawn = (
        line_chart(
            "Motion kept", _by_steps(previews, "motion_kept"), percent=True, from_zero=True,
            levels=(Level("the teacher's motion", 1.0), Level("alarm", MOTION_ALARM, alarm=True)),
            help_text="How much moves in the student's clips, against the teacher's. It should "
            "stay near or above 100 %.", empty=waiting,
        ),
        line_chart(
            "Style reached", _by_steps(previews, "style_reached"), percent=True,
            levels=(Level("your images", 1.0), Level("the teacher's look", 0.0)),
            help_text="How far single frames have come from the teacher's look (0 %) to that of "
            "your images (100 %). It should rise.", empty=waiting,
        ),
        line_chart(
            "Motion loss", _loss(steps, "consistency", "motion consistency", 0), from_zero=True,
            help_text="How far few steps are from the teacher's many. It falls quickly, then "
            "slowly; faint is raw, strong is smoothed.", empty="The first step is not done yet.",
        ),
        line_chart(
            "Style losses",
            [*_loss(steps, "adversarial", "student", 1), *_loss(steps, "discriminator", "judge", 2),
             *_loss(steps, "caption", "captions", 3)],
            help_text="Student and judge play against each other: both should stay level. One "
            "that runs away means trouble.", empty="The first step is not done yet.",
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
        return '<div class="log"><pre>The log begins with the training.</pre></div>'
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return f'<div class="log" tabindex="0"><pre>{escape(text.strip())}</pre></div>'
