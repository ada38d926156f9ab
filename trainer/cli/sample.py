"""The command `sample`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
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
from .pairs import add_pair_argument, parts_of

if TYPE_CHECKING:
    from torch import Tensor

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
    add_pair_argument(parser)
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
    from ..media import to_frames, write_clip

    _check_numbers(options)
    parts = parts_of(options)
    made: _Made | None = None
    for part in parts:
        made = _sampled(part, made, states=part is not parts[-1])
    assert made is not None
    scale = options.scale or max(1, 256 // made.size[2])
    write_clip(to_frames(made.clips[0]), options.out, made.fps, scale=scale)
    frames, height, width = made.size
    about = f"{frames} frames of {width} x {height} px, {' + '.join(made.told)}"
    print(f"Wrote {options.out} ({about}).")
    return 0


@dataclass(frozen=True)
class _Made:
    """What one network has made: a clip, or the states that the next one begins with; with ``told``
    for people, how each was sampled.
    """

    clips: Tensor
    size: tuple[int, int, int]
    fps: int
    told: tuple[str, ...]


def _sampled(options: argparse.Namespace, before: _Made | None, states: bool) -> _Made:
    """What the network that the flags name makes of noise, or of what came ``before``; it is in
    memory only meanwhile.
    """
    from ..distill.starts import let_go
    from ..evaluate.bench import fit_student
    from ..evaluate.generate import generate_clips
    from ..lora.adapter import apply_lora
    from ..runs.progress import Progress

    model = model_from(options, dtype=dtype_from(options))
    found = None if options.lora is None else fit_student(model, options.lora)
    size = _size(options, model, found) if before is None else before.size
    model.latent_shape(*size)  # a size that it cannot make is said before anything is moved
    sampling = _sampling(options, found, model)
    place(model, options)
    if found is not None:
        apply_lora(model.network, found.pairs, options.strength, found.differences, for_good=True)
    with Progress(sampling["steps"], "sampling") as progress:
        clips = generate_clips(
            model,
            [options.prompt],
            seed=options.seed,
            size=size,
            starts=None if before is None else before.clips,
            states=states,
            on_step=lambda step: progress.update(),
            **sampling,
        )
    told = f"{sampling['steps']} steps, CFG {sampling['guidance_scale']:g}"
    if model.part:
        told = f"{told} ({model.part})"
    device, fps = model.device, model.fps
    del model
    let_go(device)
    return _Made(clips, size, fps, (*(() if before is None else before.told), told))


def _size(options: argparse.Namespace, model: VideoModel, found: LoraFile | None) -> Any:
    """Frames, height and width: as asked for, else as the LoRA recommends, else the model's own."""
    from ..lora.recommended import read_recommended

    told = None if found is None else read_recommended(found.metadata, found.path.name)
    return tuple(
        getattr(options, side) or getattr(told, side, None) or getattr(model, side) for side in SIZE
    )


def _sampling(
    options: argparse.Namespace, found: LoraFile | None, model: VideoModel
) -> dict[str, Any]:
    """How the student ``found`` samples, as it recommends, or the teacher without one; steps are
    those within the part of the noise levels that ``model`` is for.
    """
    from ..lora.recommended import read_recommended

    if found is None:
        cfg = model.teaching.cfg
        chosen: dict[str, Any] = {"sampler": "ddim", "steps": TEACHER_STEPS, "guidance_scale": cfg}
    else:
        told = read_recommended(found.metadata, found.path.name)
        chosen = {"sampler": "lcm", "steps": told.steps, "guidance_scale": told.guidance_scale}
        chosen |= told.sampling
    given = {"steps": options.steps or None, "guidance_scale": options.guidance}
    chosen |= {name: value for name, value in given.items() if value is not None}
    return chosen | {"steps": model.noise.own_steps(chosen["steps"])}
