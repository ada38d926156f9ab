"""Write captions for images that have none, with a captioning model on this machine.

  python -m trainer caption my_style --captioner /models/blip-image-captioning-base
  python -m trainer caption my_style --captioner /models/blip --suffix "[trigger]"

The captioning model is a transformers folder (BLIP, BLIP-2, GIT); nothing is downloaded. Existing
captions are kept. Check the new ones: captioning models are often wrong.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images")
    parser.add_argument("--captioner", type=Path, required=True, metavar="DIR", help="its folder")
    parser.add_argument(
        "--suffix", default="", help="text to add to every caption, such as ', [trigger]'"
    )


def run(options: argparse.Namespace) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, below
    from ..data.captioner import load_captioner, missing_captions
    from ..data.captions import write_caption
    from ..data.images import scan_images
    from ..runs.progress import Progress

    wanted = list(missing_captions(scan_images(options.folder, min_side=1).records))
    if not wanted:
        print("All images already have captions.")
        return 0
    captioner = load_captioner(options.captioner)
    with Progress(len(wanted), "captions", unit="image", log=print, line_seconds=2.0) as progress:
        for record in wanted:
            parts = (captioner(record.path), options.suffix.strip(" ,"))
            write_caption(record.path, ", ".join(part for part in parts if part))
            progress.update()
    print(f"Wrote {len(wanted)} captions. Check them: captioning models are often wrong.")
    return 0
