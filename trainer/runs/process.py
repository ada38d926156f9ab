"""Which process is meant: a process id alone is not enough, for the system uses it again."""

from __future__ import annotations

import os

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
        # It exists and belongs to somebody else; calling it dead could start a second training.
        return True
