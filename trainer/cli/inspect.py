"""Show what a LoRA file contains: base model, format, matched layers, recommended settings, hashes.

python -m trainer inspect runs/ink/ink.safetensors
python -m trainer inspect my_peft_folder --model /models/text-to-video-ms-1.7b

With `--model`, its layers are matched against that base model. A LoRA for the mini model is always
matched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..paths import bundled
from .options import add_model_arguments, model_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="LoRA file or PEFT folder")
    add_model_arguments(parser, default=None)


def run(options: argparse.Namespace) -> int:
    from ..lora.inspect import inspect_file

    name = options.model or _named_model(options.file)
    report = inspect_file(options.file, None if name is None else model_from(options, name).network)
    print(report.text())
    return 0


def _named_model(file: Path) -> str | None:
    """The base model that the file says it was trained on, if it is the one that comes with us."""
    from ..lora.formats import read_lora

    name = read_lora(file).metadata.get("mcm.base_model", "")
    return name if bundled(name) else None
