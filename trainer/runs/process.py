"""Identifies processes by id and start time, because the system reuses ids, and starts processes
that outlive their parent.

"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

# Start times are counted from the boot time, which the kernel reports to the second.
_TOLERANCE_SECONDS = 2.0


def this_process() -> tuple[int, float]:
    """Process id and start time (seconds since 1970) of the running process."""
    pid = os.getpid()
    return pid, psutil.Process(pid).create_time()


def process_alive(pid: int, started: float) -> bool:
    """True when ``pid`` runs and is the process that was started at ``started``.

    A zombie (ended, but not yet collected by its parent) counts as ended.
    """
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) <= _TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:
        # It exists but belongs to another user; treating it as dead could start a second training.
        return True


def start_detached(argv: Sequence[str], cwd: Path, console: Path) -> subprocess.Popen[bytes]:
    """Start ``argv`` so that it goes on when its starter ends; its output goes to ``console``.

    On Windows it gets no console window and a process group of its own, elsewhere a session of its
    own: closing a terminal or the web page does not reach it.
    """
    options: dict[str, object] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        options = {"creationflags": flags}
    console.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    with open(console, "ab") as output:
        process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [str(part) for part in argv], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip
    # Collect its exit status while this process lives, or it would remain as a zombie.
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()
    return process


def end_process(pid: int, seconds: float = 5.0) -> None:
    """Ask process ``pid`` and what it started to end, and end what is left after ``seconds``."""
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(family, seconds)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
