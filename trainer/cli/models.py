"""List the base models on this machine, with their licence and what is missing.

python -m trainer models
python -m trainer models --comfyui /path/to/ComfyUI --folder /data/models
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="ComfyUI's folder")
    parser.add_argument(
        "--folder",
        type=Path,
        action="append",
        default=[],
        help="another folder to search; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    from ..catalog import comfyui_folder, find_models

    pack = Path(__file__).resolve().parents[2]
    for found in find_models(comfyui_folder(pack, options.comfyui), options.folder):
        state = "ready" if found.ready else f"missing: {', '.join(found.missing)}"
        print(f"{found.name}  [{found.licence}]  {state}\n    {found.model}")
    return 0
