"""From trained parts to the folder that ships: fp16 weights in ModelScope's diffusers layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet3DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.mini.words import COLOURS, MOTIONS, SHAPES, SIZE

from .teacher import SCHEDULER
from .text import save_tokenizer
from .world import FPS, FRAMES, caption

ABOUT = {
    "name": "mini",
    "frames": FRAMES,
    "height": SIZE,
    "width": SIZE,
    "fps": FPS,
    "licence": "Apache-2.0",
    "for_trying_out": "one shape",
    "subjects": list(SHAPES),
    "recommended": {
        "optim.lr": 2e-3,
        "adversarial.lr": 1e-3,
        "trajectory.guidance_min": 1.0,
        "trajectory.guidance_max": 3.0,
        "data.library_clips": 256,
        "data.library_guidance": 2.0,
    },
}


def assemble(
    folder: Path,
    unet: UNet3DConditionModel,
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write every part of the model to ``folder``.

    What else lies there (styles, judge) is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        part.to(dtype=torch.float16, memory_format=torch.contiguous_format).save_pretrained(
            folder / name
        )
        part.float()
    _forget_unused(folder / "vae" / "config.json")
    save_tokenizer(tokenizer, folder / "tokenizer")
    DDIMScheduler.from_config(SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "mcm.json").write_text(json.dumps(ABOUT, indent=2) + "\n", encoding="utf-8")
    (folder / "prompts.txt").write_text(prompt_lines(), encoding="utf-8")


def _forget_unused(config: Path) -> None:
    """diffusers stores a key here that it warns about itself when it reads the file."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("block_out_channels", None)
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def prompt_lines() -> str:
    """Every caption of the world with what one frame of it shows, in the format of a prompts "
    "file."""
    lines = ["# clip prompt, tab, what one frame shows"]
    for motion in MOTIONS:
        for shape in SHAPES:
            for colour in COLOURS:
                lines.append(f"{caption(shape, colour, motion)}\t{caption(shape, colour)}")
    return "\n".join(lines) + "\n"
