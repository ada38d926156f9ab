"""Readiness and test on the Train tab without a browser: what is shown, and for which settings."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from patience import SECONDS, wait_until

from trainer.config import to_toml
from trainer.mini.words import style_folder
from trainer.runs.process import end_process, start_detached
from ui.form import to_config
from ui.places import Places
from ui.preflight import preflight_panel, preflight_warnings, start_test
from ui.readiness import Look, Readings, placed, readiness_panel
from ui.site import Site
from ui.watch import Moment

PACK = Path(__file__).resolve().parents[2]
REPORT = {
    "device": "cpu", "memory_gib": 1.0, "available_gib": 4.0, "seconds_per_step": 1.0,
    "preview_seconds": 1.0, "library_seconds": 1.0, "total_seconds": 9.0, "disk_bytes": 9,
    "disk_free": 99, "advice": ["--memory 8"], "fits": True,
}  # fmt: skip


@pytest.fixture
def site(tmp_path) -> Site:
    (tmp_path / "pictures").mkdir()
    return Site(Places(PACK, tmp_path / "runs", (tmp_path / "pictures",)))


def panel(site: Site) -> str:
    return preflight_panel(Moment(site, None, None, None, [], None, None))


def tested(site: Site, report: dict | None = None, said: str = "", **more: object) -> None:
    """A test of the draft that has ended: with ``report``, or with the last words ``said``."""
    folder = site.tasks.folder("preflight")
    folder.mkdir(parents=True, exist_ok=True)
    values = {"pid": 2**22 + 1, "started": 1.0, "label": "mine", "begun": 1.0, **more}
    (folder / "task.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "console.txt").write_text(said, encoding="utf-8")
    tried = json.dumps(site.drafts.load().values, sort_keys=True, default=str)
    (folder / "tried.json").write_text(tried, encoding="utf-8")
    (folder / "report.json").unlink(missing_ok=True)
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def ended(pid: int) -> bool:
    """Whether the process is gone; one that nobody waits for stays as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def looked(readings: Readings) -> Look:
    end = time.monotonic() + SECONDS
    while (look := readings.now()).busy:
        assert time.monotonic() < end
        time.sleep(0.05)
    return look


def test_a_result_is_shown_for_its_own_settings_only(site):
    tested(site, REPORT)
    assert "It fits: mine" in panel(site)
    site.drafts.update({"data.batch_size": 3})
    shown = panel(site)
    assert "other settings" in shown and "fits" not in shown and "good" not in shown
    tested(site, {**REPORT, "fits": False})
    assert "It does not fit" in panel(site) and preflight_warnings(site)
    site.drafts.update({"data.batch_size": 5})
    assert preflight_warnings(site) == []


def test_a_test_that_was_killed_says_so_and_not_its_last_log_line(site):
    said = "Ready.\n[2/5] A first training step\n"
    tested(site, None, said)
    shown = panel(site)
    assert "it was stopped" in shown and "memory ran out" in shown and "[2/5]" not in shown
    tested(site, None, f"{said}error: the disk is full")
    assert "failed" in panel(site) and "the disk is full" in panel(site)
    tested(site, None, said, stopped=True)
    assert "You stopped it" in panel(site)


def test_a_running_test_shows_its_stage_and_can_be_stopped(site):
    config = to_config(site.drafts.load().values, site.places, site.places.runs / "x")
    start_test(site, "mine", site.drafts.load().values, to_toml(config))
    task = json.loads((site.tasks.folder("preflight") / "task.json").read_bytes())
    console = site.tasks.folder("preflight") / "console.txt"
    end = time.monotonic() + SECONDS
    while b"[1/5]" not in console.read_bytes():
        assert time.monotonic() < end and site.tasks.status("preflight").running
        time.sleep(0.05)
    assert "width:" in panel(site) and "example clip" in panel(site)
    site.tasks.stop("preflight")
    wait_until(lambda: ended(task["pid"]), "the end of the test")
    assert "You stopped it" in panel(site)


def test_what_a_process_started_ends_with_it(tmp_path):
    code = (
        "import subprocess, sys, time; "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, "
        "flush=True); time.sleep(600)"
    )
    parent = start_detached([sys.executable, "-c", code], tmp_path, tmp_path / "out.txt")
    end = time.monotonic() + SECONDS
    while not (said := (tmp_path / "out.txt").read_text(encoding="utf-8").strip()):
        assert time.monotonic() < end
        time.sleep(0.05)
    end_process(parent.pid)
    parent.wait(timeout=SECONDS)
    wait_until(lambda: ended(int(said)), "the end of what it started")


def test_the_first_draft_is_ready_and_every_change_is_looked_at(site):
    look = looked(site.readings)
    assert look.ready, readiness_panel(look)
    assert "Ready" in readiness_panel(look) and 'data-ready="true"' in readiness_panel(look)
    site.drafts.update({"data.height": 360})
    assert not site.readings.now().ready
    look = looked(site.readings)
    assert set(look.bad) == {"data.height"} and "use 352 or 368" in readiness_panel(look)
    site.drafts.update({"data.height": 0})
    look = looked(site.readings)
    assert look.problem and "Not ready" in readiness_panel(look)


def test_start_is_not_closed_for_the_moment_of_another_check(site, monkeypatch):
    """A click in that moment would be lost; the click itself checks again."""
    assert not site.readings.now().may_start, "nothing is known yet"
    assert looked(site.readings).may_start
    answer = threading.Event()
    check = Readings.check
    monkeypatch.setattr(Readings, "check", lambda *a: (answer.wait(SECONDS), check(*a))[1])
    for steps in (900, 1000):
        site.drafts.update({"steps": steps})
        look = site.readings.now()
        assert look.busy and look.may_start
    answer.set()
    assert looked(site.readings).may_start
    site.drafts.update({"data.height": 360})
    assert not looked(site.readings).may_start
    answer.clear()
    site.drafts.update({"data.height": None})
    look = site.readings.now()
    assert look.busy and not look.may_start
    answer.set()
    assert looked(site.readings).may_start


def test_what_is_missing_is_looked_for_again(site, tmp_path, monkeypatch):
    folder = tmp_path / "pictures" / "later"
    folder.mkdir()
    site.drafts.update({"images": str(folder)})
    assert set(looked(site.readings).bad) == {"images"}
    (folder / "a.png").write_bytes(next(style_folder("ink").glob("*.png")).read_bytes())
    monkeypatch.setattr("ui.readiness.AGAIN_SECONDS", 0.0)
    end = time.monotonic() + SECONDS
    while not site.readings.now().ready:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_path_that_is_pointed_at_must_be_there_and_allowed(site, tmp_path):
    file = tmp_path / "pictures" / "vae.safetensors"
    file.write_bytes(b"x")
    assert placed("vae", str(file), site.places) == str(file)
    with pytest.raises(ValueError, match="VAE: .* does not exist"):
        placed("vae", str(tmp_path / "pictures" / "no"), site.places)
    with pytest.raises(ValueError, match="outside the folders"):
        placed("vae", "/etc/passwd", site.places)


def test_names_from_the_disk_are_harmless_on_the_page(site, tmp_path):
    folder = tmp_path / "pictures" / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    site.drafts.update({"images": str(folder)})
    assert "<img" not in readiness_panel(looked(site.readings))
