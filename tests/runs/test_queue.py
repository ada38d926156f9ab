"""The queue of runs: order, one worker, failures that do not hold up the next run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from patience import SECONDS

from trainer.config import load_config
from trainer.runs.folder import Run, RunError
from trainer.runs.lock import RunLock, RunLockedError, lock_holder
from trainer.runs.process import start_detached
from trainer.runs.queue import PACK, Queue
from trainer.runs.state import RunState, read_state, write_state


def make_run(root: Path, name: str, **settings) -> Run:
    return Run.create(root / name, load_config(overrides={"run": root / name, **settings}))


def names(queue: Queue) -> list[str]:
    return [job.run for job in queue.jobs()]


def test_jobs_keep_their_order_and_a_run_waits_only_once(tmp_path):
    queue = Queue(tmp_path)
    runs = [make_run(tmp_path, name) for name in ("ä", "b", "c")]
    for run in (*runs, runs[0]):
        queue.add(run)
    assert names(queue) == ["ä", "b", "c"]
    queue.move_up(queue.jobs()[2].id)
    assert names(queue) == ["ä", "c", "b"]
    queue.remove(queue.jobs()[0].id)
    assert names(queue) == ["c", "b"] == names(Queue(tmp_path))


def test_only_runs_of_its_own_folder_and_real_jobs_are_taken(tmp_path):
    queue = Queue(tmp_path / "runs")
    with pytest.raises(RunError, match="not a run in"):
        queue.add(make_run(tmp_path / "elsewhere", "x"))
    with pytest.raises(RunError, match="not a job"):
        queue.remove("../../x")


def test_damaged_files_are_left_out(tmp_path):
    queue = Queue(tmp_path)
    queue.add(make_run(tmp_path, "good"))
    (queue.folder / "bad.json").write_text("{", encoding="utf-8")
    (queue.folder / "worse.json").write_text('["x"]', encoding="utf-8")
    assert names(queue) == ["good"]


def test_a_second_worker_is_refused_and_the_first_is_seen(tmp_path):
    queue = Queue(tmp_path)
    queue.add(make_run(tmp_path, "x"))
    assert not queue.busy
    with RunLock(Run(queue.folder)):
        assert queue.busy
        with pytest.raises(RunLockedError):
            queue.work()
    assert not queue.busy and lock_holder(tmp_path / "nothing") is None


def test_a_run_that_cannot_start_says_why_and_the_next_one_follows(tmp_path):
    queue = Queue(tmp_path)
    broken = make_run(tmp_path, "broken")
    broken.config_path.write_text("model = 5 = 6", encoding="utf-8")
    missing = make_run(tmp_path, "missing", model=str(tmp_path / "no model"))
    gone = make_run(tmp_path, "gone")
    for run in (broken, missing, gone):
        queue.add(run)
    gone.config_path.unlink()
    assert queue.work() == 3 and queue.jobs() == []
    assert "not valid TOML" in read_state(broken).error
    assert read_state(missing).status == "failed" and "no model" in read_state(missing).error


def test_a_run_that_trains_already_is_waited_for(tmp_path):
    queue = Queue(tmp_path)
    run = make_run(tmp_path, "live")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"])
    started = psutil.Process(process.pid).create_time()
    write_state(run, RunState("running", pid=process.pid, pid_started=started))
    queue.add(run)
    assert queue.work() == 1
    process.wait()
    assert read_state(run).status == "interrupted" and not (run.path / "console.txt").exists()


def test_a_detached_process_leaves_its_words_in_the_console_file(tmp_path):
    console = tmp_path / "new folder" / "console.txt"
    script = "import os; print('süß', os.getcwd())"
    process = start_detached([sys.executable, "-c", script], PACK, console)
    assert process.wait(SECONDS) == 0
    assert console.read_text(encoding="utf-8").split() == ["süß", str(PACK)]


def test_a_preview_request_is_taken_once(tmp_path):
    run = make_run(tmp_path, "x")
    assert not run.take_preview_request()
    run.request_preview()
    assert run.take_preview_request() and not run.take_preview_request()
