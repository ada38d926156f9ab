"""Write the LoRA of a run's checkpoint: the newest one, or the one with the best previews.

  python -m trainer export runs/my-style --checkpoint 300
  python -m trainer export runs/my-style --out ../ComfyUI/models/loras/my-style.safetensors

A file that exists is only replaced with --force.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="its step (the newest)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write (RUN/<name>-step<number>.safetensors)",
    )
    parser.add_argument("--force", action="store_true", help="replace the file at --out")


def run(options: argparse.Namespace) -> int:
    from ..distill.stored import export_checkpoint
    from ..runs.folder import Run

    if options.out is not None and options.out.exists() and not options.force:
        raise ValueError(f"{options.out} exists; give another name, or --force to replace it.")
    made = export_checkpoint(Run.open(options.folder), options.checkpoint, options.out)
    print(f"Wrote {made.path} ({made.modules} modules, sha256 {made.sha256}).")
    return 0
