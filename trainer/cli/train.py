"""Train a few-step style LoRA from a folder of images.

  python -m trainer train --model mini --images my_style --run runs/my-style --minutes 6
  python -m trainer train --config my.toml --seed 3
  python -m trainer train --model sd15.safetensors --motion-module mm_sd_v15_v2.ckpt ...

It first checks that nothing is missing, and lists where to get what is (`preflight` also measures
memory and time). Every setting is a flag and a line in the run's config.toml. `--help-expert` also
shows those of the method (used like --motion.weight 2, or --set motion.weight=2). The run folder
holds the state, log, samples, checkpoints and finally the LoRA. Stop with Ctrl+C or `stop`,
continue with `resume`.
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
