"""Export the LoRA from a checkpoint of a run: the newest, one by its step, or the best.

The best checkpoint has the most motion and style in its preview. The end of a training exports it
automatically.

  python -m trainer export runs/my-style --checkpoint 300
  python -m trainer export runs/my-style --out ../ComfyUI/models/loras/my-style.safetensors

An existing file is only replaced with --force.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--checkpoint",
        type=_step,
        metavar="STEP",
        help='step of the checkpoint, or "best" (default: the newest)',
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (RUN/<name>-step<number>.safetensors)",
    )
    parser.add_argument("--force", action="store_true", help="replace the file at --out")


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)


def run(options: argparse.Namespace) -> int:
    from ..distill.stored import best_checkpoint, export_checkpoint
    from ..runs.folder import Run

    if options.out is not None and options.out.exists() and not options.force:
        raise ValueError(
            f"{options.out} exists; choose another name, or add --force to replace it."
        )
    folder = Run.open(options.folder)
    step = best_checkpoint(folder) if options.checkpoint == "best" else options.checkpoint
    made = export_checkpoint(folder, step, options.out)
    print(f"Wrote {made.path} ({made.modules} modules, sha256 {made.sha256}).")
    return 0
