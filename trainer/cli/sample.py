"""The command `sample`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    add_device_argument,
    add_model_arguments,
    add_swap_argument,
    dtype_from,
    model_from,
    place,
)

if TYPE_CHECKING:
    from ..families import VideoModel
    from ..lora.formats import LoraFile

SIZE = ("frames", "height", "width")
TEACHER_STEPS = 50


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--lora",
        type=Path,
        metavar="FILE",
        help="LoRA file or PEFT folder; without it, the base model samples",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the LoRA (1.0)")
    parser.add_argument("--prompt", required=True, help="what the clip shows")
    parser.add_argument(
        "--steps", type=int, help="sampling steps (with a LoRA: what it recommends; else 50)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        help="CFG scale (with a LoRA: what it recommends; else 3.0, for Wan 5.0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    parser.add_argument(
        "--frames", type=int, help="frames (as the LoRA recommends, else the model's own)"
    )
    parser.add_argument("--height", type=int, help="pixels (likewise)")
    parser.add_argument("--width", type=int, help="pixels (likewise)")
    parser.add_argument("--scale", type=int, help="enlarge the clip by this whole number")
    add_device_argument(parser)
    add_swap_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write")


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise ValueError naming the flag that cannot be used."""
    if options.lora is not None and options.strength == 0:
        raise ValueError(
            "`--strength 0` switches the LoRA off; leave out `--lora` to sample the base model."
        )
    ranges = {"strength": (-10, 10), "guidance": (0, 100), "steps": (1, 1000), "scale": (1, 32)}
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"`--{name} {value}` must be from {low} to {high}.")


def sample(options: argparse.Namespace) -> int:
    """Make a clip: with a LoRA in 1 to 8 steps, or with the base model in many.

      python -m trainer sample --lora ink.safetensors --prompt "a red star growing" --out clip.mp4
      python -m trainer sample --prompt "a red star growing" --steps 50 --out teacher.webp

    The suffix sets the format: .mp4, .webm, .webp, .gif, or none for a folder of PNG files. The
    same seed gives the same clip in a batch, on any device (up to rounding) and in ComfyUI.
    """
    from ..evaluate.bench import fit_student
    from ..evaluate.generate import generate_clips
    from ..lora.adapter import apply_lora
    from ..media import to_frames, write_clip
    from ..runs.progress import Progress

    _check_numbers(options)
    model = model_from(options, dtype=dtype_from(options))
    found = None if options.lora is None else fit_student(model, options.lora)
    size = _size(options, model, found)
    model.latent_shape(*size)  # a size that it cannot make is said before anything is moved
    place(model, options)
    if found is not None:
        apply_lora(model.network, found.pairs, options.strength, found.differences, for_good=True)
    sampling = _sampling(options, found, model.teaching.cfg)
    with Progress(sampling["steps"], "sampling") as progress:
        clips = generate_clips(
            model,
            [options.prompt],
            seed=options.seed,
            size=size,
            on_step=lambda step: progress.update(),
            **sampling,
        )
    scale = options.scale or max(1, 256 // size[2])
    write_clip(to_frames(clips[0]), options.out, model.fps, scale=scale)
    steps, guidance = sampling["steps"], sampling["guidance_scale"]
    frames, height, width = size
    about = f"{frames} frames of {width} x {height} px, {steps} steps, CFG {guidance:g}"
    print(f"Wrote {options.out} ({about}).")
    return 0


def _size(options: argparse.Namespace, model: VideoModel, found: LoraFile | None) -> Any:
    """Frames, height and width: as asked for, else as the LoRA recommends, else the model's own."""
    from ..lora.recommended import read_recommended

    told = None if found is None else read_recommended(found.metadata, found.path.name)
    return tuple(
        getattr(options, side) or getattr(told, side, None) or getattr(model, side) for side in SIZE
    )


def _sampling(
    options: argparse.Namespace, found: LoraFile | None, guidance: float
) -> dict[str, Any]:
    """How the student ``found`` samples, as it recommends, or the teacher with ``guidance`` without
    one.
    """
    from ..lora.recommended import read_recommended

    if found is None:
        chosen = {"sampler": "ddim", "steps": TEACHER_STEPS, "guidance_scale": guidance}
    else:
        told = read_recommended(found.metadata, found.path.name)
        chosen = {"sampler": "lcm", "steps": told.steps, "guidance_scale": told.guidance_scale}
        chosen |= told.sampling
    given = {"steps": options.steps or None, "guidance_scale": options.guidance}
    return chosen | {name: value for name, value in given.items() if value is not None}
