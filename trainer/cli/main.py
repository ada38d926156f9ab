"""The command line: one parser, one sentence for every expected failure."""

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
        "demo": "Train a style LoRA on the embedded mini model and show the result, in minutes.",
    },
    "preparation": {
        "preflight": "Try two steps and a preview: memory, time and disk, before a long run.",
        "models": "List the base models found on this machine, with licence and what is missing.",
        "caption": "Write captions for images that have none, with a captioning model of yours.",
    },
    "training": {
        "train": "Distil a few-step style LoRA from a folder of images.",
        "resume": "Continue a run that was stopped, or that was interrupted.",
        "stop": "Ask a running training to save, export and end.",
        "queue": "Train the runs that wait in a queue, one after another.",
    },
    "sample": {
        "sample": "Make a clip, with a LoRA in 1-8 steps or with the teacher.",
    },
    "results": {
        "preview": "Show the teacher beside a run's student, now.",
        "export": "Write the LoRA of one of a run's checkpoints.",
        "inspect": "Show what a LoRA file is, what it fits, and what it recommends.",
        "convert": "Write a LoRA in the form that another program reads.",
    },
    "evaluate": {
        "evaluate": "Measure captions, motion and style of few-step clips against the teacher's.",
    },
}
"""Commands by their module, where each is a function beside its `NAME_arguments`."""
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, FloatingPointError)
"""Errors that carry a message for the user; anything else is a bug and keeps its traceback."""
BUGS = (RuntimeError, NotImplementedError, RecursionError)
"""Of those, what PyTorch and Python raise themselves: the message alone leads nowhere. Our own are
subclasses, as is running out of memory."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Few-step video in the style of your images (motion consistency models).",
        epilog="Each command has its own --help. A first look: python -m trainer demo",
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
