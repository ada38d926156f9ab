"""Continue a run that was stopped, or that was interrupted by a crash or a power cut.

  python -m trainer resume runs/my-style
  python -m trainer resume runs/my-style --steps 2000     # and train further

Everything is restored from the newest whole checkpoint: on the CPU, with a number of steps, the
result is bit for bit that of a run without a break. With `--minutes` the learning rate follows the
clock, and no two runs are alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import save_config, with_overrides
from ..runs.checkpoints import latest_checkpoint, load_checkpoint
from ..runs.folder import Run
from ..runs.state import read_state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--steps", help="new goal in steps")
    parser.add_argument(
        "--minutes",
        help="new time budget in minutes, time already trained included; 'none' lifts it",
    )


def run(options: argparse.Namespace) -> int:
    folder = Run.open(options.folder)
    changes = {
        k: getattr(options, k) for k in ("steps", "minutes") if getattr(options, k) is not None
    }
    if changes:
        save_config(with_overrides(folder.config(), changes), folder.config_path)
    if _is_over(folder):
        print(
            f"{folder.name} is finished after {read_state(folder).step} steps. To train further, "
            "give a new goal: --steps N, or --minutes M."
        )
        return 0
    from ..distill.loop import train

    state = train(folder, resume=True)
    return 0 if state.status in ("finished", "stopped") else 1


def _is_over(folder: Run) -> bool:
    """Whether the run has reached the goal that its settings name now."""
    newest = latest_checkpoint(folder)
    if read_state(folder).status != "finished" or newest is None:
        return False
    config, state = folder.config(), load_checkpoint(newest).state
    by_time = config.minutes is not None and state["trained_seconds"] >= 60 * config.minutes
    return by_time or read_state(folder).step >= config.steps
