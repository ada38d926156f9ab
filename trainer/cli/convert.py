"""Convert a LoRA to the format of another program. Its values do not change.

  python -m trainer convert ink.safetensors ink-peft --to peft
  python -m trainer convert animatediff-laion laion.safetensors --to kohya
  python -m trainer convert ink.safetensors ink --to animatediff-evolved

Formats: `kohya` (ComfyUI, all layers), `kohya-webui` (the image layers, with Stable Diffusion 1.5's
own block names), `peft` (a folder, like the official LoRAs), `diffusers` (one file),
`animatediff-evolved` (a folder with an image LoRA and a motion LoRA; with --motion-module also a
merged motion module).
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMS = ("kohya", "kohya-webui", "peft", "diffusers", "animatediff-evolved")
DTYPES = ("keep", "fp16", "bf16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="IN", help="LoRA file or folder, in any format"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file or folder to write")
    parser.add_argument("--to", required=True, choices=FORMS, help="format to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="keep", help="precision of the numbers (keep)"
    )
    parser.add_argument(
        "--motion-module",
        type=Path,
        metavar="PATH",
        help="motion module to merge the motion layers into, for animatediff-evolved",
    )


def run(options: argparse.Namespace) -> int:
    from ..lora.convert import convert

    done = convert(
        options.source,
        options.out,
        options.to,
        dtype=options.dtype,
        motion_module=options.motion_module,
    )
    print(done.text())
    return 0
