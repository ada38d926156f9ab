"""Show what a LoRA file is: family, format, keys matched, what it recommends, hashes.

python -m trainer inspect runs/ink/ink.safetensors
python -m trainer inspect my_peft_folder --model /models/text-to-video-ms-1.7b
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="LoRA file or PEFT folder")
    parser.add_argument(
        "--model",
        help="base model to match the keys against (the mini model where the LoRA names it)",
    )


def run(options: argparse.Namespace) -> int:
    from ..families import load_model
    from ..lora.inspect import inspect_file

    name = options.model or _named_model(options.file)
    report = inspect_file(options.file, None if name is None else load_model(name).unet)
    print(report.text())
    return 0


def _named_model(file: Path) -> str | None:
    """ "mini" when the file says that it was trained on it: that base is always at hand."""
    from ..lora.formats import read_lora

    return "mini" if read_lora(file).metadata.get("mcm.base_model") == "mini" else None
