"""Runs that are trained one after another: a folder of small files beside the run folders.

Every job is a file of its own, so that viewers and the worker need no common lock: adding, removing
and finishing touch one file each. The worker is `python -m trainer queue`; it holds a lock while it
works, which tells viewers that it is there.
"""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..files import atomic_write, retry_denied
from .folder import Run, RunError, safe_join
from .lock import RunLock, lock_holder
from .process import start_detached
from .state import RunState, read_state, write_state

FOLDER = "_queue"
PACK = Path(__file__).resolve().parents[2]
"""Where ``python -m trainer`` is started from."""
_ID = re.compile(r"[0-9a-f]{32}")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """One waiting or running job: train or resume the run called ``run``; low ``order`` first."""

    id: str
    run: str
    order: int


class Queue:
    """The jobs of the runs in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.folder = self.root / FOLDER

    def jobs(self) -> list[Job]:
        """All jobs, the first one being worked on or next. Damaged files are left out."""
        found = []
        for file in self.folder.glob("*.json"):
            try:
                values = json.loads(retry_denied(file.read_bytes).decode("utf-8"))
                job = Job(file.stem, str(values["run"]), int(values["order"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # removed a moment ago, or not ours
            found.append(job)
        return sorted(found, key=lambda job: (job.order, job.id))

    def add(self, run: Run) -> Job:
        """Add a run at the end; one that already waits keeps its place.

        Raises `RunError` for a run that is not in ``root``.
        """
        if run.path.parent.resolve() != self.root.resolve() or not run.config_path.is_file():
            raise RunError(f"'{run.name}' is not a run in {self.root}; use the name of a run in "
            "it.")
        jobs = self.jobs()
        for job in jobs:
            if job.run == run.name:
                return job
        job = Job(uuid.uuid4().hex, run.name, jobs[-1].order + 1 if jobs else 0)
        self._write(job)
        return job

    def remove(self, job_id: str) -> None:
        """Remove a job; its run stays. Does nothing if the job no longer exists."""
        if not _ID.fullmatch(job_id):
            raise RunError(f"{job_id!r} is not a job; choose one from the list.")
        (self.folder / f"{job_id}.json").unlink(missing_ok=True)

    def move_up(self, job_id: str) -> None:
        """Swap a job with the one before it; the first waiting one stays behind a running one."""
        jobs = self.jobs()
        places = [place for place, job in enumerate(jobs) if job.id == job_id]
        lowest = 1 if self.busy else 0
        if places and places[0] > lowest:
            before, job = jobs[places[0] - 1], jobs[places[0]]
            self._write(replace(job, order=before.order))
            self._write(replace(before, order=job.order))

    @property
    def busy(self) -> bool:
        """True while a worker holds the queue's lock."""
        return lock_holder(Run(self.folder).lock_path) is not None

    def _write(self, job: Job) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {key: value for key, value in asdict(job).items() if key != "id"}
        text = json.dumps(values, ensure_ascii=False)
        atomic_write(self.folder / f"{job.id}.json", text.encode("utf-8"))

    def start_worker(self) -> None:
        """Start a worker that outlives this process, unless one is there or nothing waits."""
        if self.jobs() and not self.busy:
            argv = [sys.executable, "-m", "trainer", "queue", str(self.root)]
            start_detached(argv, PACK, self.folder / "worker.txt")

    def work(self) -> int:
        """Train every job in turn, in processes of their own; the number of jobs done.

        Raises `RunLockedError` if another worker is active. A failed run does not stop the next
        one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = 0
        with RunLock(Run(self.folder)):
            while jobs := self.jobs():
                _train(safe_join(self.root, jobs[0].run))
                self.remove(jobs[0].id)
                done += 1
        return done


def _train(path: Path) -> None:
    """`resume` the run at ``path`` (from the beginning if it never ran) and wait for the end."""
    try:
        run = Run.open(path)
    except RunError:
        return  # deleted while it waited
    begun = time.time()
    if not (read_state(run).live and read_state(run).pid):
        argv = [sys.executable, "-m", "trainer", "resume", str(run.path)]
        process = start_detached(argv, PACK, run.path / "console.txt")
        if process.wait() != 0:
            _explain(run, begun)
        return
    while read_state(run).live:  # its worker died and it went on alone
        time.sleep(_POLL_SECONDS)


def _explain(run: Run, begun: float) -> None:
    """Store the last output of a process that ended without an error message as the run's error."""
    state = read_state(run)
    if state.updated is not None and state.updated >= begun - 1:
        return
    console = run.path / "console.txt"
    words = console.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    error = "\n".join(words[-12:]) or "The process ended without a message."
    write_state(run, RunState(status="failed", step=state.step, steps=state.steps, error=error))
