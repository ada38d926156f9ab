"""The command `evaluate`."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.progress import Progress as Bar
from .options import (
    add_device_argument,
    add_model_arguments,
    add_swap_argument,
    dtype_from,
    model_from,
    place,
)
from .pairs import add_pair_argument, parts_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluate.bench import Progress, Starts
    from ..evaluate.table import Evaluation
    from ..families import VideoModel


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--lora",
        type=Path,
        metavar="FILE",
        help="the student's LoRA; without it, the base model is measured",
    )
    add_pair_argument(parser)
    parser.add_argument(
        "--style", type=Path, metavar="DIR", help="style images for the style distance"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="text file with one prompt per line (the model's own, if it has some)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        help="the student's sampling steps (1 2 4 8; of two networks together 2 4 8)",
    )
    parser.add_argument(
        "--teacher-steps", type=int, default=50, help="the teacher's DDIM steps (50)"
    )
    parser.add_argument("--guidance", type=float, help="the teacher's CFG scale (3.0; 5.0 for Wan)")
    parser.add_argument("--count", type=int, default=64, help="clips per row (64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and noise (0)")
    _add_networks(parser)
    parser.add_argument("--videos", type=Path, metavar="DIR", help="real videos to compare with")
    add_device_argument(parser)
    add_swap_argument(parser)
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="JSON file to write the results to"
    )


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features",
        default="auto",
        help="feature network, for models without their own measuring network (auto)",
    )
    parser.add_argument("--features-path", type=Path, metavar="DIR", help="its folder")
    parser.add_argument(
        "--videomae", type=Path, metavar="DIR", help="VideoMAE folder, for distances between clips"
    )
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP folder for CLIPSIM")


def evaluate(options: argparse.Namespace) -> int:
    """Measure captions, motion and style of few-step clips against the base model, with intervals.

      python -m trainer evaluate --lora ink.safetensors --style my_style --count 64 --json out.json
      python -m trainer evaluate --model modelscope --lora ink.safetensors --prompts vbench.txt \
        --style my_style --videomae videomae-base --clip clip-vit-base-patch32 --videos my_videos
    """
    from ..evaluate.table import Evaluation, evaluate

    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(
            f"`--json`: the folder of '{options.json}' does not exist; create it first."
        )
    parts = parts_of(options)
    last = parts[-1]
    asked = Evaluation(
        lora=last.lora,
        style=options.style,
        steps=options.steps or ([1, 2, 4, 8] if len(parts) == 1 else [2, 4, 8]),
        teacher_steps=options.teacher_steps,
        count=options.count,
        seed=options.seed,
        guidance_scale=options.guidance,
        prompts=options.prompts,
        features=options.features,
        features_path=options.features_path,
        videomae=options.videomae,
        clip=options.clip,
        videos=options.videos,
    )
    with Bars() as progress:
        for first in parts[:-1]:
            asked = replace(asked, starts=_begun(first, asked, progress))
        model = place(model_from(last, dtype=dtype_from(last)), last)
        result = evaluate(model, asked, progress)
    print(result.text())
    if options.json is not None:
        result.save(options.json)
        print(f"Wrote {options.json}.")
    return 0


def _begun(options: argparse.Namespace, asked: Evaluation, progress: Progress) -> Starts:
    """What the first of two networks makes for the second. It is in memory only meanwhile."""
    from ..distill.starts import let_go

    model = place(model_from(options, dtype=dtype_from(options)), options)
    device, made = model.device, _states(model, options.lora, asked, progress)
    del model
    let_go(device)
    return made


def _states(
    model: VideoModel, lora: Path | None, asked: Evaluation, progress: Progress
) -> dict[tuple[str, int], Tensor]:
    """The teacher's clips begin with the states of its own, the student's with those of ``lora``,
    if there is one.
    """
    from ..evaluate.bench import SEEDS_PER_RUN, fit_student, merged
    from ..evaluate.generate import generate_clips
    from ..evaluate.table import captions_of

    captions = captions_of(model, asked)

    def states(sampler: str, steps: int, **sampling: Any) -> Tensor:
        what = f"{model.part}, {steps} steps"
        return generate_clips(
            model,
            captions,
            sampler=sampler,
            steps=model.noise.own_steps(steps),
            seed=asked.seed * SEEDS_PER_RUN,
            progress=lambda done, total: progress(what, done, total),
            states=True,
            **sampling,
        )

    file = None if lora is None else fit_student(model, lora)
    teacher = states("ddim", asked.teacher_steps, guidance_scale=model.teaching.cfg)
    made = {("ddim", asked.teacher_steps): teacher}
    with merged(model, file) as sampling:
        for steps in asked.steps:
            made["lcm", steps] = teacher if file is None else states("lcm", steps, **sampling)
    return made


class Bars:
    """Shows one progress bar after another: ``bars(what, clips done, clips in all)``.

    The first line says what comes; without a terminal, a line follows every 30 seconds.
    """

    def __init__(self, line_seconds: float = 30.0) -> None:
        self._what, self._bar, self._line_seconds = "", ExitStack(), line_seconds
        self._shown: Bar | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what or self._shown is None:
            self._bar.close()
            self._what = what
            bar = Bar(total, what, unit="clip", line_seconds=self._line_seconds)
            self._shown = self._bar.enter_context(bar)
        if done > self._shown.step:
            self._shown.update(done - self._shown.step)

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()
