"""Promises of state.json and events.jsonl: whole at all times, honest about dead processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from trainer.config import load_config
from trainer.runs.events import EventLog, read_events
from trainer.files import retry_denied
from trainer.runs.folder import Run
from trainer.files import DiskFullError
from trainer.runs.process import process_alive, start_detached, this_process
from trainer.runs.state import RunState, read_state, write_state

ROOT = Path(__file__).resolve().parents[2]
WRITE_FOREVER = """
import sys
import threading
from dataclasses import replace
from pathlib import Path
from trainer.runs.events import EventLog
from trainer.runs.folder import Run
from trainer.runs.state import RunState, write_state
run = Run.open(Path(sys.argv[1]))
state, log = RunState.of_this_process(10**9, status="running"), EventLog(run.events_path)
for step in range(1, 10**9):
    write_state(run, replace(state, step=step, message="ü" * (step % 5000)))
    log.append("step", step=step, loss=1 / step, note="猫" * (step % 50))
    if step == 20:
        print("warm", flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "Lauf ü", load_config())


def start(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE
    )


def test_state_is_read_back_as_written(run: Run) -> None:
    state = replace(
        RunState.of_this_process(300, status="running"),
        step=7, eta_seconds=12.5, seconds_per_step=0.5, memory_gib=1.25, message="läuft",
    )  # fmt: skip
    write_state(run, state)
    found = read_state(run)
    assert found.updated is not None and state.started is not None
    assert found.updated >= state.started
    assert replace(found, updated=None) == state
    assert found.live


def test_new_run_is_starting_without_a_process(run: Run) -> None:
    state = read_state(run)
    assert (state.status, state.pid, state.step) == ("starting", None, 0)


def test_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`status`='runing' is not known; use starting"):
        RunState(status="runing")  # type: ignore[arg-type]


def test_not_a_number_becomes_null(run: Run) -> None:
    write_state(run, RunState(eta_seconds=math.nan, seconds_per_step=math.inf))
    assert "NaN" not in run.state_path.read_text(encoding="utf-8")
    assert read_state(run).eta_seconds is None


@pytest.mark.parametrize("status", ["starting", "preflight", "running", "stopping"])
def test_reused_process_id_is_not_mistaken(run: Run, status: str) -> None:
    state = replace(RunState.of_this_process(3), status=status)
    assert state.pid_started is not None
    write_state(run, state)
    assert read_state(run).status == status
    write_state(run, replace(state, pid_started=state.pid_started - 60))
    found = read_state(run)
    assert found.status == "interrupted"
    assert f'python -m trainer resume "{run.path}"' in found.message


@pytest.mark.parametrize("status", ["stopped", "finished", "failed"])
def test_ended_runs_stay_as_they_ended(run: Run, status: str) -> None:
    write_state(run, RunState(status=status, pid=2**22 + 1, pid_started=1.0, error="boom"))
    found = read_state(run)
    assert (found.status, found.error, found.live) == (status, "boom", False)


def test_killed_but_uncollected_process_is_dead() -> None:
    child = start("import sys; sys.stdout.write('x\\n'); sys.stdout.flush(); sys.stdin.read()")
    assert child.stdout is not None
    try:
        import psutil

        started = psutil.Process(child.pid).create_time()
        assert process_alive(child.pid, started)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
        assert psutil.pid_exists(child.pid)
        assert not process_alive(child.pid, started)
    finally:
        child.kill()
        child.communicate()
    assert not process_alive(child.pid, started)


def test_the_end_of_a_child_is_collected_by_itself(tmp_path: Path) -> None:
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    process = start_detached([sys.executable, "-c", code], tmp_path, tmp_path / "out.txt")
    reaper = next(t for t in threading.enumerate() if t.name == f"reap {process.pid}")
    (tmp_path / "go").touch()
    reaper.join(120)
    assert not reaper.is_alive() and process.returncode == 0
    assert not psutil.pid_exists(process.pid)  # not even as a zombie


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**40])
def test_impossible_process_ids_are_dead(pid: int) -> None:
    assert not process_alive(pid, this_process()[1])


@pytest.mark.parametrize("content", [b"", b'{"status": "run', b"[]", b'{"status": "x"}', b"\xff"])
def test_damaged_state_is_shown_as_interrupted(run: Run, content: bytes) -> None:
    run.state_path.write_bytes(content)
    state = read_state(run)
    assert state.status == "interrupted" and "damaged" in (state.error or "")
    assert "resume" in state.message


def test_keys_of_a_newer_version_are_ignored(run: Run) -> None:
    run.state_path.write_text('{"status": "stopped", "step": 4, "mood": "good"}', encoding="utf-8")
    assert read_state(run).step == 4


def test_kill_while_writing_leaves_whole_state_and_events(run: Run) -> None:
    child = start(WRITE_FOREVER, str(run.path))
    assert child.stdout is not None and child.stdout.readline().strip() == b"warm"
    seen = [read_state(run).step for _ in range(20)]  # never torn while it is being replaced
    assert seen == sorted(seen) and seen[0] >= 20
    child.kill()
    child.communicate()
    state = read_state(run)
    assert state.status == "interrupted" and state.step >= seen[-1]
    steps = [event["step"] for event in read_events(run.events_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert state.step - 1 <= len(steps) <= state.step


def test_events_are_read_back_with_kind_and_time(run: Run) -> None:
    with EventLog(run.events_path) as log:
        log.append("step", step=1, loss=0.5, parts={"gan": torch.tensor(2.0)}, path=Path("a/ü"))
        log.append("note", text="zwei\nZeilen \u2028 und 猫", skipped=True, values=(1, None))
    first, second = read_events(run.events_path)
    assert first["time"] > 1e9 and first["parts"] == {"gan": 2.0} and first["path"] == "a/ü"
    assert second["text"] == "zwei\nZeilen \u2028 und 猫" and second["values"] == [1, None]
    assert read_events(run.events_path, "note") == [second]
    assert read_events(run.path / "none.jsonl") == []


def test_event_values_that_are_not_finite_become_null(run: Run) -> None:
    with EventLog(run.events_path) as log:
        log.append("step", step=1, loss=math.nan, norm=torch.tensor(math.inf), more=[-math.inf])

    def refuse(text: str) -> None:
        raise AssertionError(text)

    event = json.loads(run.events_path.read_bytes(), parse_constant=refuse)
    assert (event["loss"], event["norm"], event["more"]) == (None, None, [None])


def test_event_values_must_be_plain(run: Run) -> None:
    with EventLog(run.events_path) as log:
        with pytest.raises(TypeError, match="object cannot be an event's value"):
            log.append("step", thing=object())
        log.append("step", step=1)
    assert [event["step"] for event in read_events(run.events_path)] == [1]


@pytest.mark.parametrize("cut", [1, 3, 8, 20])
def test_torn_last_line_is_ignored_then_cut_off(run: Run, cut: int) -> None:
    with EventLog(run.events_path) as log:
        log.append("step", step=1)
        log.append("step", step=2, note="ü猫")
    run.events_path.write_bytes(run.events_path.read_bytes()[:-cut])
    assert [event["step"] for event in read_events(run.events_path)] == [1]
    with EventLog(run.events_path) as log:
        log.append("step", step=2)
    assert [event["step"] for event in read_events(run.events_path)] == [1, 2]


def test_damaged_line_in_between_is_reported(run: Run) -> None:
    run.events_path.write_bytes(b'{"kind": "a"}\n\0\0\0\n[1]\n{"kind": "b"}\n')
    with pytest.warns(UserWarning, match="line [23] is damaged") as caught:
        assert [event["kind"] for event in read_events(run.events_path)] == ["a", "b"]
    assert len(caught) == 2


def test_resume_drops_the_events_of_later_steps_only(run: Run) -> None:
    with EventLog(run.events_path) as log:
        for step in range(1, 8):
            log.append("step", step=step, turn=1)
        log.append("note", text="killed")
    with EventLog(run.events_path, resume_step=5) as log:
        for step in (6, 7, 8):
            log.append("step", step=step, turn=2)
    events = read_events(run.events_path, "step")
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event["turn"] for event in events] == [1] * 5 + [2] * 3
    assert [event["text"] for event in read_events(run.events_path, "note")] == ["killed"]


def test_full_disk_is_named_as_such(run: Run) -> None:
    run.events_path.symlink_to("/dev/full")
    log = EventLog(run.events_path)
    with pytest.raises(DiskFullError, match="the disk is full .*resume: earlier checkpoints"):
        log.append("step", step=1)
    log.close()


def test_denied_access_is_tried_again_and_finally_raised() -> None:
    calls: list[int] = []

    def denied_twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise PermissionError("in use")
        return "done"

    assert retry_denied(denied_twice, tries=3, pause=0) == "done"
    calls.clear()
    with pytest.raises(PermissionError, match="in use"):
        retry_denied(denied_twice, tries=2, pause=0)
    assert len(calls) == 2
