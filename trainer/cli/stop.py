"""Stop a running training: it saves, exports and ends. It can be resumed.

python -m trainer stop runs/my-style
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..runs.folder import Run
from ..runs.state import read_state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="seconds to wait for the run to end (60)",
    )


def run(options: argparse.Namespace) -> int:
    folder = Run.open(options.folder)
    state = read_state(folder)
    if not state.live:
        print(f"{folder.name} is not running (status: {state.status}).")
        return 0
    folder.request_stop()
    end = time.monotonic() + options.wait
    while time.monotonic() < end:
        state = read_state(folder)
        if not state.live:
            print(f"{folder.name}: {state.status} at step {state.step}. {state.message}")
            return 0
        time.sleep(0.2)
    print(f"{folder.name} is still {state.status}; it stops after the current training step.")
    return 1
