"""Continue a run that was stopped, or interrupted by a crash or a power cut.

  python -m trainer resume runs/my-style
  python -m trainer resume runs/my-style --steps 2000     # train further

Everything is restored from the newest complete checkpoint. On the CPU, with a fixed number of
steps, the result is bit-identical to an uninterrupted run. With `--minutes` the learning rate
follows the clock, so no two runs are identical.
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
    parser.add_argument("--steps", help="new total number of training steps")
    parser.add_argument(
        "--minutes",
        help="new time limit in minutes, including time already trained; 'none' removes it",
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
            "raise the total: --steps N, or --minutes M."
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
