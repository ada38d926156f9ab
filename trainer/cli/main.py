"""The command line: one parser, and one-line messages for expected errors."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..files import disk_full

COMMANDS = {
    "demo": {
        "demo": "Train a style LoRA on the included mini model and show the result, in a few "
        "minutes.",
    },
    "preparation": {
        "preflight": "Measure memory, time and disk space with two training steps and a preview.",
        "models": "List the base models on this machine, with their licence and what is missing.",
        "caption": "Write captions for images that have none, with a captioning model on this "
        "machine.",
    },
    "training": {
        "train": "Train a few-step style LoRA from a folder of images.",
        "resume": "Continue a run that was stopped or interrupted.",
        "stop": "Stop a running training: it saves, exports and ends.",
        "queue": "Train the runs that wait in a queue, one after another.",
    },
    "sample": {
        "sample": "Make a clip: with a LoRA in 1 to 8 steps, or with the base model.",
    },
    "results": {
        "preview": "Make clips of the base model beside those of a run's LoRA, now.",
        "export": "Export the LoRA from a checkpoint of a run.",
        "inspect": "Show what a LoRA file contains, which models it fits, and what settings it "
        "recommends.",
        "convert": "Convert a LoRA to the format of another program.",
    },
    "evaluate": {
        "evaluate": "Measure how well few-step clips match captions, motion and style, against the "
        "base model.",
    },
}
"""Commands by their module, where each is a function beside its `NAME_arguments`."""
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, FloatingPointError)
"""Errors that carry a message for the user; anything else is a bug and keeps its traceback."""
BUGS = (RuntimeError, NotImplementedError, RecursionError)
"""Of those, errors that PyTorch and Python raise themselves, whose message alone does not help. Our
own errors are subclasses, as is running out of memory.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Few-step video in the style of your images (motion consistency models).",
        epilog="Each command has its own --help. To begin: python -m trainer demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for home, texts in COMMANDS.items():
        module = importlib.import_module(f".{home}", __package__)
        for name, text in texts.items():
            run = getattr(module, name)
            sub = commands.add_parser(
                name,
                help=text,
                description=inspect.getdoc(run),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            getattr(module, f"{name}_arguments")(sub)
            sub.set_defaults(function=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 with a message on an expected failure, 130 on Ctrl+C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may know no umlauts
            stream.reconfigure(errors="replace")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # local files load in a moment
    options = build_parser().parse_args(argv)
    try:
        return int(options.function(options) or 0)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except EXPECTED as error:
        if type(error) in BUGS:
            traceback.print_exc()
        error = disk_full(error, Path.cwd()) or error
        print(f"error: {error}", file=sys.stderr)
        return 1
