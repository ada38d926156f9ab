"""Distil a few-step style LoRA from a folder of images.

  python -m trainer train --model mini --images my_style --run runs/my-style --minutes 6
  python -m trainer train --config my.toml --seed 3
  python -m trainer train --model sd15.safetensors --motion-module mm_sd_v15_v2.ckpt ...

Before anything long, everything it needs is looked up: what is missing is listed with where to get
it and where to put it (`preflight` does the same, and measures).
Every setting is a flag and a line of the run's config.toml; `--help-expert` shows those of the
method too (as --motion.weight 2, or --set motion.weight=2).
The run folder holds state, log, samples, checkpoints and in the end the LoRA; stop with Ctrl+C or
`stop`, go on with `resume`.
"""

from __future__ import annotations

import argparse
import os

from ..runs.folder import Run
from .options import add_config_arguments, config_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(options: argparse.Namespace) -> int:
    config = config_from(options)
    # With several processes (accelerate launch) the first one makes the folder and the others read
    # it.
    first = os.environ.get("RANK", "0") == "0"
    from ..distill.loop import train, wait_for_run
    from ..readiness import require_ready

    if first:
        require_ready(config, print)
    folder = Run.create(config.run, config) if first else wait_for_run(config.run)
    state = train(folder, checked=True)
    return 0 if state.status in ("finished", "stopped") else 1
