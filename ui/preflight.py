"""The preflight's report on the page, and what it says against a start."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from trainer.config import ConfigError, TrainConfig, load_config, with_overrides

from .site import Site
from .status import duration, notice
from .watch import Moment

STAGES = "Two real steps and one preview are tried; the teacher's clips are made first."


def preflight_panel(moment: Moment) -> str:
    """Progress or the result of the last preflight."""
    site = moment.site
    task = site.tasks.status("preflight")
    if not task.label:
        return ""
    if task.running:
        last = task.output.strip().rpartition("\n")[2]
        return notice("live", f"Checking {task.label}", f"{STAGES}\n{last[-200:]}")
    report = _report(site)
    if report is None:
        problem = task.problem or "The check ended without a result."
        return notice("bad", "The check failed", problem)
    return _shown(task.label, report)


def preflight_result(site: Site, config: TrainConfig) -> list[str]:
    """A sentence when the last preflight tried these settings and they do not fit."""
    report, tried = _report(site), _tried(site)
    if report is None or report.get("fits") or tried is None:
        return []
    if with_overrides(tried, {"run": config.run}) != config:
        return []
    advice = " ".join(f"Try {hint}." for hint in report.get("advice", []))
    return [f"The check says that these settings do not fit into memory or disk. {advice}"]


def _tried(site: Site) -> TrainConfig | None:
    try:
        return load_config(site.tasks.folder("preflight") / "config.toml")
    except ConfigError:
        return None


def _report(site: Site) -> dict[str, Any] | None:
    try:
        return json.loads((site.tasks.folder("preflight") / "report.json").read_bytes())
    except (OSError, ValueError):
        return None


def _shown(name: str, report: dict[str, Any]) -> str:
    memory = report.get("memory_gib")
    took = "more than there is" if memory is None else f"{memory:.2f} GiB"
    rows = [
        ("Device", str(report["device"])),
        ("Peak memory", f"{took} of {report['available_gib']:.1f} GiB"),
        ("Time a step", f"{report['seconds_per_step']:.2f} s"),
        ("Whole training", f"about {duration(report['total_seconds'])}"),
        ("Disk", f"{report['disk_bytes'] / 2**20:.0f} MiB of {report['disk_free'] / 2**30:.0f} GiB "
         "free"),
    ]  # fmt: skip
    cells = "".join(f"<div><span>{escape(k)}</span><b>{escape(v)}</b></div>" for k, v in rows)
    fits = bool(report.get("fits"))
    advice = "".join(f"<li>{escape(hint)}</li>" for hint in report.get("advice", []))
    more = f"<p><b>What would fit:</b></p><ul>{advice}</ul>" if advice else ""
    word = "It fits" if fits else "It does not fit"
    return (
        f'<div class="notice {"good" if fits else "bad"}"><b>{word}: {escape(name)}</b>'
        f'<div class="facts">{cells}</div>{more}</div>'
    )
