"""A training from the command line: start, continue, stop, and one after another."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from ..config import save_config, with_overrides
from ..runs.checkpoints import latest_checkpoint, load_checkpoint
from ..runs.folder import Run, RunError, safe_join
from ..runs.lock import RunLockedError
from ..runs.queue import Queue
from ..runs.state import read_state
from .options import add_config_arguments, config_from


def train_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def train(options: argparse.Namespace) -> int:
    """Train a few-step style LoRA from a folder of images.

      python -m trainer train --model mini --images my_style --run runs/my-style --minutes 6
      python -m trainer train --config my.toml --seed 3
      python -m trainer train --model sd15.safetensors --motion-module mm_sd_v15_v2.ckpt ...
      python -m trainer train --model wan2.1_t2v_1.3B_fp16.safetensors --steps 300
        --start-from a_step_lora.safetensors --images my_style --run runs/my-style

    It first checks that nothing is missing, and lists where to get what is (`preflight` also
    measures memory and time). Every setting is a flag and a line in the run's config.toml.
    `--help-expert` also shows those of the method (used like --motion.weight 2, or --set
    motion.weight=2). The run folder holds the state, log, samples, checkpoints and finally the
    LoRA. Stop with Ctrl+C or `stop`, continue with `resume`.
    """
    config = config_from(options)
    # With several processes (accelerate launch) the first one makes the folder and the others read
    # it.
    first = os.environ.get("RANK", "0") == "0"
    from ..distill.loop import train
    from ..readiness import require_ready

    if first:
        require_ready(config, print)
    folder = Run.create(config.run, config) if first else _wait_for_run(config.run)
    state = train(folder, None)
    return 0 if state.status in ("finished", "stopped") else 1


def _wait_for_run(path: Path, seconds: float = 60.0) -> Run:
    """The run that the first of several processes makes; raises RunError when it does not come."""
    end = time.monotonic() + seconds
    while True:
        try:
            return Run.open(path)
        except RunError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--steps", help="new total number of training steps")
    parser.add_argument(
        "--minutes",
        help="new time limit in minutes, including time already trained; 'none' removes it",
    )


def resume(options: argparse.Namespace) -> int:
    """Continue a run that was stopped, or interrupted by a crash or a power cut.

      python -m trainer resume runs/my-style
      python -m trainer resume runs/my-style --steps 2000     # train further

    Everything is restored from the newest complete checkpoint. On the CPU, with a fixed number of
    steps, the result is bit-identical to an uninterrupted run. With `--minutes` the learning rate
    follows the clock, so no two runs are identical.
    """
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
    from ..readiness import require_ready

    state = train(folder, require_ready, resume=True)
    return 0 if state.status in ("finished", "stopped") else 1


def _is_over(folder: Run) -> bool:
    """Whether the run has reached the goal that its settings name now."""
    newest = latest_checkpoint(folder)
    if read_state(folder).status != "finished" or newest is None:
        return False
    config, state = folder.config(), load_checkpoint(newest).state
    by_time = config.minutes is not None and state["trained_seconds"] >= 60 * config.minutes
    return by_time or read_state(folder).step >= config.steps


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="seconds to wait for the run to end (60)",
    )


def stop(options: argparse.Namespace) -> int:
    """Stop a running training: it saves, exports and ends. It can be resumed.

    python -m trainer stop runs/my-style
    """
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


def queue_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUNS", help="the folder that holds the runs")
    parser.add_argument("--add", metavar="RUN", help="name of a run to add at the end of the queue")
    parser.add_argument("--list", action="store_true", help="only list the jobs")


def queue(options: argparse.Namespace) -> int:
    """Train the runs in a folder's queue, one after another, until the queue is empty.

      python -m trainer queue runs                  # train the queue of runs/
      python -m trainer queue runs --add my-style   # add runs/my-style at its end
      python -m trainer queue runs --list

    The web page uses the same queue. A run that was stopped or interrupted continues where it was.
    """
    queue = Queue(options.folder)
    if options.add:
        job = queue.add(Run.open(safe_join(queue.root, options.add)))
        print(f"{job.run} is number {[j.id for j in queue.jobs()].index(job.id) + 1} in the queue.")
    elif options.list:
        for number, job in enumerate(queue.jobs(), 1):
            state = read_state(Run(queue.root / job.run))
            print(f"{number}. {job.run} ({state.status}, step {state.step})")
    else:
        try:
            print(f"{queue.work()} job(s) done.")
        except RunLockedError:
            print("Another process is already working on this queue.")
    return 0
