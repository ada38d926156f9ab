"""The test of memory and time on the page: its progress, and a result for the tried settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from .site import Site
from .status import duration, notice
from .watch import Moment

STAGE = re.compile(r"^\[(\d+)/(\d+)\] (.*)$", re.MULTILINE)
TITLE = "Test of memory and time"
KILLED = (
    "The system ended its process before it was done. Usually main memory ran out: choose less "
    "under Graphics memory, or close other programs, and test again."
)


def start_test(site: Site, name: str, values: Mapping[str, Any], config_text: str) -> None:
    """Start the test of these settings. Raises `TaskError` while another one runs."""
    place = site.tasks.folder("preflight")
    report = place / "report.json"
    config = place / "config.toml"

    def prepare() -> None:
        report.unlink(missing_ok=True)
        config.write_text(config_text, encoding="utf-8")
        (place / "tried.json").write_text(_plain(values), encoding="utf-8")

    arguments = ["preflight", "--config", config, "--json", report]
    site.tasks.start("preflight", name, arguments, prepare)


def _plain(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True, default=str)


def preflight_panel(moment: Moment) -> str:
    """Progress, or what the last test of the settings now in the form found."""
    site = moment.site
    task = site.tasks.status("preflight")
    if not task.label:
        return ""
    if task.running:
        return _running(task.label, task.output)
    if not _is_of_the_form(site):
        return '<p class="quiet">The last test used other settings: test again.</p>'
    if task.stopped:
        return notice("quiet", f"{TITLE}: stopped", "You stopped it. Nothing was changed.")
    report = _report(site)
    if report is not None:
        return _shown(task.label, report)
    if "error: " in task.output or "Traceback (" in task.output:
        return notice("bad", f"{TITLE}: failed", task.problem)
    return notice("bad", f"{TITLE}: it was stopped", KILLED)


def is_testing(site: Site) -> bool:
    return site.tasks.status("preflight").running


def preflight_warnings(site: Site) -> list[str]:
    """A warning if the last test found that the form's current settings do not fit."""
    report = _report(site)
    if report is None or report.get("fits") or not _is_of_the_form(site):
        return []
    advice = " ".join(f"Try {hint}." for hint in report.get("advice", []))
    return [f"The test found that these settings do not fit into memory or onto the disk. {advice}"]


def _is_of_the_form(site: Site) -> bool:
    try:
        tried = (site.tasks.folder("preflight") / "tried.json").read_text(encoding="utf-8")
    except OSError:
        return False
    return tried == _plain(site.drafts.load().values)


def _report(site: Site) -> dict[str, Any] | None:
    try:
        return json.loads((site.tasks.folder("preflight") / "report.json").read_bytes())
    except (OSError, ValueError):
        return None


def _running(name: str, output: str) -> str:
    stages = STAGE.findall(output)
    number, count, text = stages[-1] if stages else ("0", "1", "Starting")
    share = 100 * max(int(number) - 1, 0) / int(count)
    return (
        f'<div class="notice live"><b>{TITLE}: {escape(name)}</b>'
        f'<div class="bar"><i style="width:{share:.0f}%"></i></div>'
        f"<pre>{escape(text)} ...</pre></div>"
    )


def _shown(name: str, report: dict[str, Any]) -> str:
    memory = report.get("memory_gib")
    took = "more than available" if memory is None else f"{memory:.2f} GiB"
    rows = [
        ("Device", str(report["device"])),
        ("Peak memory", f"{took} of {report['available_gib']:.1f} GiB"),
        ("A training step", f"{report['seconds_per_step']:.2f} s"),
        ("Example clips, once", f"about {duration(report.get('library_seconds', 0))}, "
         f"{report.get('library_bytes', 0) / 2**20:.0f} MiB"),
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
