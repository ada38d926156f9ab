"""The command `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..mini.words import STYLES, style_folder
from ..paths import BUNDLED

PROMPTS = (
    "a red circle moving right",
    "a blue star growing",
    "a yellow square bouncing",
    "a green square circling",
)

LIBRARY_CLIPS = 128
"""Half of the recommended number: saves a minute before the first training step."""


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=5.0, help="training time (5)")
    parser.add_argument(
        "--style", choices=STYLES, default="poster", help="which example style to learn (poster)"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="your own style images instead of an example"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (0)")
    parser.add_argument("--run", type=Path, help="run folder (runs/demo, or the next free number)")


def demo(options: argparse.Namespace) -> int:
    """Train a LoRA on the included mini model and make a clip in 4 steps, in a few minutes.

      python -m trainer demo
      python -m trainer demo --style neon --minutes 3
      python -m trainer demo --images my_style

    Needs no GPU and no download. Writes runs/demo: the LoRA, clips, and comparison.webp /
    comparison.png with the base model in 50 steps beside the LoRA in 1, 2, 4 and 8.
    """
    from ..config import load_config
    from ..distill.loop import train
    from ..readiness import require_ready
    from ..runs.events import read_events
    from ..runs.folder import Run

    images = options.images or style_folder(options.style)
    path = options.run or _free(Path("runs") / "demo")
    overrides = {
        "model": BUNDLED,
        "images": images,
        "run": path,
        "seed": options.seed,
        "steps": 100_000,
        "minutes": options.minutes,
        "data.library_clips": LIBRARY_CLIPS,
        "preview.prompts": PROMPTS,
        "preview.count": len(PROMPTS),
        "preview.every": 200,
    }
    folder = Run.create(path, load_config(overrides=overrides))
    state = train(folder, require_ready)
    exports = read_events(folder.events_path, "export")
    if not exports:
        print(state.message)
        return 0
    exported = exports[-1]["step"]
    _present(folder, folder.samples / f"step-{exported:06d}")
    return 0 if state.status in ("finished", "stopped") else 1


def _free(path: Path) -> Path:
    """``path``, or the first of path-2, path-3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _present(folder, preview: Path) -> None:
    import shutil

    for name in ("grid.webp", "grid.png"):
        if (preview / name).is_file():
            shutil.copyfile(preview / name, folder.path / name.replace("grid", "comparison"))
    clip = folder.path / "clip.mp4"
    if (preview / "prompt-1-steps-4.mp4").is_file():
        shutil.copyfile(preview / "prompt-1-steps-4.mp4", clip)
    print(
        f"\nLoRA         {folder.export_path}\n"
        f"Clip         {clip} ({PROMPTS[0]!r}, 4 steps)\n"
        f"Comparison   {folder.path / 'comparison.webp'} (teacher 50 steps; student 1, 2, 4, 8)\n\n"
        f'Next: python -m trainer sample --model {BUNDLED} --lora "{folder.export_path}" '
        '--prompt "a purple cross moving up" --steps 4 --out clip2.mp4'
    )
