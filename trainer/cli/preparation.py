"""Before a training: what is there, what it will take, and captions."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cards import CARDS
from ..files import atomic_write
from .options import add_config_arguments, card_from, config_from


def preflight_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="JSON file to write the report to")
    parser.add_argument(
        "--check", action="store_true", help="only check that nothing is missing; measure nothing"
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="estimate the memory of a training step from tensor shapes alone",
    )
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="with --estimate: use the published model of this family instead of --model",
    )


def preflight(options: argparse.Namespace) -> int:
    """Before a long run: check that nothing is missing, then measure memory, time and disk space.

    The measuring takes two real training steps and one preview.

      python -m trainer preflight --model mini --images my_style
      python -m trainer preflight --check --model sd15.safetensors --images my_style   # check only
      python -m trainer preflight --config my.toml --json report.json
      python -m trainer preflight --estimate --model sd15.ckpt --motion-module mm.ckpt --card 12
      python -m trainer preflight --estimate --family modelscope --card 8

    It accepts the same settings as `train`, makes one or two example clips, and leaves no files.
    If the settings do not fit, it suggests some that do. `--check` takes seconds and lists what is
    missing, with size, licence and the folder it belongs in. `--estimate` needs no graphics card
    and no images: it runs the training step on tensor shapes alone. With `--family` it does not
    need the model's files either.
    """
    if options.family and not options.estimate:
        raise ValueError("`--family` has no weights to run; add `--estimate`, or give `--model`.")
    if options.estimate:
        return _estimate(options)
    config = config_from(options)
    from ..readiness import check

    readiness = check(config)
    print(readiness.text(), flush=True)
    if options.check:
        _write(options.json, readiness.to_json())
        return 0 if readiness.ready else 1
    readiness.require()
    from ..distill.preflight import preflight

    with _ending_in_order():
        report = preflight(config, lambda text: print(text, flush=True))
    print(report.text())
    _write(options.json, report.to_json())
    return 0 if report.fits else 1


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Inside, a polite kill ends as Ctrl+C does, temporary files included."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        atomic_write(path, json.dumps(content, indent=1, allow_nan=False).encode("utf-8"))


def _estimate(options: argparse.Namespace) -> int:
    from ..distill.estimate import HEADROOM, estimate, estimated, read_model
    from ..families import skeleton_named

    gigabytes = card_from(options)
    config = config_from(options, **({"model": options.family} if options.family else {}))
    model = skeleton_named(options.family) if options.family else read_model(config)
    print(estimated(config, model))
    found = estimate(config, model)
    print(found.text())
    if found.waiting:
        print(_ram(found.waiting))
    for offer in model.family.offers.values() if options.family else ():
        if offer.without:
            print(f"This is with {offer.files}. {offer.without}")
    if gigabytes is None:
        fitting = [size for size in CARDS if found.gib <= HEADROOM * size]
        size = f"Fits a card with {fitting[0]}" if fitting else f"Does not fit one with {CARDS[-1]}"
        print(f"{size} GB.")
        return 0
    fits = found.gib <= HEADROOM * gigabytes
    print(f"The run {'fits' if fits else 'does NOT fit'} a card with {gigabytes} GB.")
    return 0 if fits else 1


def _ram(needed: int) -> str:
    """Whether this computer has the RAM that the card's run takes beside the card's own memory."""
    import psutil

    from ..distill.estimate import GIB, HEADROOM

    there = psutil.virtual_memory().total
    text = (
        f"Your computer needs {math.ceil(needed / GIB)} GB of free RAM; it has {there / GIB:.0f} GB"
    )
    return f"{text}, which is too little." if needed > HEADROOM * there else f"{text}."


def models_arguments(parser: argparse.ArgumentParser) -> None:
    place = "ComfyUI's folder, or its models"
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help=place)
    parser.add_argument(
        "--folder",
        type=Path,
        action="append",
        default=[],
        help="another folder to search; may be repeated",
    )


def models(options: argparse.Namespace) -> int:
    """List the base models on this machine, with their licence and what is missing.

    python -m trainer models
    python -m trainer models --comfyui /path/to/ComfyUI --folder /data/models
    """
    from ..catalog import comfyui_folder, find_models, searched

    comfyui = comfyui_folder(Path(__file__).resolve().parents[2], options.comfyui)
    for found in find_models(comfyui, options.folder):
        state = "ready" if found.ready else f"missing: {', '.join(found.missing)}"
        print(f"{found.name}  [{found.licence}]  {state}\n    {found.model}")
        for text in found.better_with:
            print(f"    {text}")
    print(f"Searched: {', '.join(map(str, searched(comfyui, options.folder)))}")
    if comfyui is None:
        print("ComfyUI was not found; --comfyui DIR searches its models too.")
    return 0


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images")
    parser.add_argument("--captioner", type=Path, required=True, metavar="DIR", help="its folder")
    parser.add_argument(
        "--suffix", default="", help="text to add to every caption, such as ', [trigger]'"
    )


def caption(options: argparse.Namespace) -> int:
    """Write captions for images that have none, with a captioning model on this machine.

      python -m trainer caption my_style --captioner /models/blip-image-captioning-base
      python -m trainer caption my_style --captioner /models/blip --suffix "[trigger]"

    The captioning model is a transformers folder (BLIP, BLIP-2, GIT); nothing is downloaded.
    Existing captions are kept. Check the new ones: captioning models are often wrong.
    """
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
