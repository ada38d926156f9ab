"""Make a preview now: the teacher beside the student in 1, 2, 4 and 8 steps.

  python -m trainer preview runs/my-style
  python -m trainer preview runs/my-style --prompt "a red star growing" --seed 7
  python -m trainer preview runs/my-style --strengths 0 0.5 0.75 1

A run that is training is asked to make it after its present step. With prompts of your own, or
strengths of the LoRA to compare, the exported step is used (the newest while there is none), in
this process.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--prompt", action="append", default=[], help="what a clip shows; may be given again"
    )
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=[],
        metavar="S",
        help="strengths of the LoRA to compare, in 4 steps, on one prompt",
    )
    parser.add_argument("--seed", type=int, help="seed of the noise (the run's)")


def run(options: argparse.Namespace) -> int:
    from ..runs.folder import Run
    from ..runs.state import read_state

    folder = Run.open(options.folder)
    if read_state(folder).live and not (options.prompt or options.strengths):
        folder.request_preview()
        print(f"{folder.name} makes a preview after its present step.")
        return 0
    from ..distill.stored import preview_checkpoint

    made = preview_checkpoint(folder, options.prompt, options.seed, options.strengths)
    print(f"Wrote {made.folder}.")
    return 0
