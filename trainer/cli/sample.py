"""Make a clip: with a LoRA in 1-8 steps, or without one by the teacher (DDIM with guidance).

  python -m trainer sample --lora ink.safetensors --prompt "a red star growing" --out clip.mp4
  python -m trainer sample --prompt "a red star growing" --steps 50 --out teacher.webp

The suffix decides the format: .mp4, .webm, .webp, .gif, or none for a folder of PNG files. The clip
depends on the seed alone: it is the same in a batch, on any device up to rounding, and in ComfyUI.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_model_arguments, model_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--lora",
        type=Path,
        metavar="FILE",
        help="LoRA file or PEFT folder; without it the teacher samples",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the LoRA (1.0)")
    parser.add_argument("--prompt", required=True, help="what the clip shows")
    parser.add_argument(
        "--steps", type=int, help="sampling steps (with a LoRA what it recommends, else 50)"
    )
    parser.add_argument(
        "--guidance", type=float, help="CFG scale (with a LoRA what it recommends, else 3.0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    parser.add_argument("--frames", type=int, help="frames (the model's own)")
    parser.add_argument("--height", type=int, help="pixels (the model's own)")
    parser.add_argument("--width", type=int, help="pixels (the model's own)")
    parser.add_argument("--scale", type=int, help="whole enlargement factor of the written clip")
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where to compute (auto)",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")


def run(options: argparse.Namespace) -> int:
    from ..config import TrainConfig, with_overrides
    from ..distill.loop import make_accelerator
    from ..evaluate.bench import sampling_options
    from ..evaluate.generate import generate_clips
    from ..lora.adapter import apply_lora
    from ..lora.few_step import fit_few_step
    from ..lora.formats import read_lora
    from ..media import to_frames, write_clip
    from ..runs.progress import Progress

    device = make_accelerator(
        with_overrides(TrainConfig(), {"hardware.device": options.device})
    ).device
    model = model_from(options).to(device)
    found = None
    if options.lora is not None:
        found = read_lora(options.lora, model.unet)
        names = (model.family.name, model.name, options.lora.name)
        apply_lora(model.unet, fit_few_step(found, model.unet, *names), options.strength)
    student = found is not None
    metadata = found.metadata if found else {}
    steps = options.steps or (int(metadata.get("mcm.steps", 4)) if student else 50)
    guidance = options.guidance
    if guidance is None:
        guidance = float(metadata.get("mcm.guidance_scale", 1.0)) if student else 3.0
    size = (
        options.frames or model.frames,
        options.height or model.height,
        options.width or model.width,
    )
    with Progress(steps, "sampling") as progress:
        clips = generate_clips(
            model,
            [options.prompt],
            sampler="lcm" if student else "ddim",
            steps=steps,
            guidance_scale=guidance,
            seed=options.seed,
            size=size,
            on_step=lambda step: progress.update(),
            **sampling_options(found),
        )
    scale = options.scale or max(1, 256 // size[2])
    write_clip(to_frames(clips[0]), options.out, model.fps, scale=scale)
    print(f"Wrote {options.out} ({size[0]} frames, {steps} steps, CFG {guidance:g}).")
    return 0
