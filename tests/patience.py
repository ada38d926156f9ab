"""How long a test waits for another process before it calls it hung.

No test is about speed: a slow or busy machine only makes it longer. The limit is there so that a
real hang ends at all, and the one place to raise it is ``MCM_TEST_PATIENCE`` (seconds).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

SECONDS = float(os.environ.get("MCM_TEST_PATIENCE", 900))
MILLISECONDS = 1000 * SECONDS


def wait_until(
    condition: Callable[[], bool],
    what: str,
    process: subprocess.Popen | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until ``condition()`` holds; fails at once when ``process`` ends before that."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"{what}: the process ended early"
        assert time.monotonic() < end, f"{what}: not within {SECONDS:.0f} s"
        pause(0.02)
