"""A gallery of a model's example styles: six prompts, the base model beside the students.

    python benchmarks/gallery.py --minutes 8 --out work/gallery
    python benchmarks/gallery.py --styles ink neon --lora neon=my_neon.safetensors

Trains a student of every style folder in the model's folder, unless a LoRA is given; a run that
broke off continues, a finished one is taken as it is. Writes for each style an animated WebP at
twice the size, a row a prompt, the base model in 50 steps beside the student in 1, 2, 4 and 8, and
the same as film strips (PNG).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from trained import trained  # noqa: E402

from trainer.distill.preview import write_grid  # noqa: E402
from trainer.evaluate.bench import fit_student, merged  # noqa: E402
from trainer.evaluate.generate import generate_clips  # noqa: E402
from trainer.evaluate.truth import as_frames, draw_prompts  # noqa: E402
from trainer.families import VideoModel, load_model  # noqa: E402

STEPS = (1, 2, 4, 8)
PROMPTS, SEED = 6, 5
LONG = 1_000_000  # steps: the minutes end the run
STRIP = 5
"""Frames of a film strip."""


class Gallery:
    """The same prompts and noise for the base model and every student of ``model``."""

    def __init__(self, model: VideoModel, base_steps: int):
        self.model = model
        self.prompts = draw_prompts(PROMPTS, SEED, model.path / "prompts.txt")
        label = f"base model, {base_steps} steps"
        guided = {"sampler": "ddim", "guidance_scale": model.teaching.cfg}
        self.base = {label: self._clips(base_steps, **guided)}

    def _clips(self, steps: int, **sampling: Any) -> Any:
        return as_frames(
            generate_clips(self.model, self.prompts, steps=steps, seed=SEED, **sampling)
        )

    def add(self, name: str, lora: Path, out: Path) -> Path:
        """Write the page of the student ``lora``; the animated one."""
        clips = dict(self.base)
        with merged(self.model, fit_student(self.model, lora)) as options:
            for steps in STEPS:
                label = f"{name}, {steps} step{'s' if steps > 1 else ''}"
                clips[label] = self._clips(steps, sampler="lcm", **options)
        write_grid(self.prompts, clips, out / name, self.model.fps, scale=2, strip=STRIP)
        return out / f"{name}.webp"


def _given(texts: list[str]) -> dict[str, Path]:
    """LoRAs by the style that ``NAME=FILE`` names."""
    pairs = [text.partition("=") for text in texts]
    for name, sign, file in pairs:
        if not sign or not Path(file).is_file():
            raise SystemExit(
                f"`--lora` {name}{sign}{file}: write NAME=FILE with a file that exists."
            )
    return {name: Path(file) for name, _, file in pairs}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="a name or a folder with styles/ (mini)")
    parser.add_argument("--styles", nargs="+", help="of those in the model's folder (all)")
    parser.add_argument("--lora", nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training steps, a style (8)")
    parser.add_argument("--steps", type=int, help="training steps instead of minutes")
    parser.add_argument("--base-steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("work/gallery"))
    options = parser.parse_args(arguments)
    model, given = load_model(options.model), _given(options.lora)
    folders = {each.name: each for each in sorted((model.path / "styles").iterdir())}
    for name in (*(options.styles or ()), *given):
        if name not in folders:
            raise SystemExit(
                f"'{name}' is no style of {model.name}; there are {', '.join(folders)}."
            )
    gallery = Gallery(model, options.base_steps)
    minutes = None if options.steps else options.minutes
    usual = {"model": options.model, "steps": options.steps or LONG, "minutes": minutes}
    for name in options.styles or folders:
        run = options.out / "runs" / name
        lora = given.get(name) or trained(run, {**usual, "images": folders[name]})
        print(gallery.add(name, lora, options.out), flush=True)


if __name__ == "__main__":
    main()
