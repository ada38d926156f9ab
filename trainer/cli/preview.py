"""Make a preview now: the base model beside the LoRA in 1, 2, 4 and 8 steps.

  python -m trainer preview runs/my-style
  python -m trainer preview runs/my-style --prompt "a red star growing" --seed 7
  python -m trainer preview runs/my-style --strengths 0 0.5 0.75 1

A run that is training makes it after its current training step. With your own prompts, or strengths
to compare, this command makes it, with the exported LoRA (or the newest checkpoint if there is
none).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--prompt", action="append", default=[], help="what the clip shows; may be repeated"
    )
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=[],
        metavar="S",
        help="LoRA strengths to compare, in 4 sampling steps, on one prompt",
    )
    parser.add_argument("--seed", type=int, help="seed of the noise (the run's)")


def run(options: argparse.Namespace) -> int:
    from ..runs.folder import Run
    from ..runs.state import read_state

    folder = Run.open(options.folder)
    if read_state(folder).live and not (options.prompt or options.strengths):
        folder.request_preview()
        print(f"{folder.name} makes a preview after the current training step.")
        return 0
    from ..distill.stored import preview_checkpoint

    made = preview_checkpoint(folder, options.prompt, options.seed, options.strengths)
    print(f"Wrote {made.folder}.")
    return 0
