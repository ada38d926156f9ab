"""Before a long run: check that nothing is missing, then measure peak memory, time and disk space
with two real training steps and one preview.

  python -m trainer preflight --model mini --images my_style
  python -m trainer preflight --check --model sd15.safetensors --images my_style   # check only
  python -m trainer preflight --config my.toml --json report.json python -m trainer preflight
  --estimate --model sd15.ckpt --motion-module mm.ckpt --card 12 python -m trainer preflight
  --estimate --family modelscope --card 8

It accepts the same settings as `train`, makes one or two example clips, and leaves no files. If the
settings do not fit, it suggests some that do. `--check` takes seconds and lists what is missing,
with size, licence and the folder it belongs in. `--estimate` needs no graphics card and no images:
it runs the training step on tensor shapes alone. With `--family` it does not need the model's files
either.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runs.files import atomic_write
from ..settings.cards import CARD_PRESETS, CARDS
from .options import add_config_arguments, card_from, config_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
        choices=tuple(CARD_PRESETS),
        help="with --estimate: use the published model of this family instead of --model",
    )


def run(options: argparse.Namespace) -> int:
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
    from ..distill.estimate import estimate
    from ..distill.preflight import HEADROOM
    from ..distill.skeletons import skeleton

    family, gigabytes = options.family, card_from(options)
    config = config_from(options, **({"model": family} if family else {}))
    found = estimate(config, skeleton(family) if family else None)
    print(found.text())
    if gigabytes is None:
        fitting = [size for size in CARDS if found.gib <= HEADROOM * size]
        print(
            f"Fits a {fitting[0]} GB card." if fitting else f"Does not fit a {CARDS[-1]} GB card."
        )
        return 0
    fits = found.gib <= HEADROOM * gigabytes
    print(f"The run {'fits' if fits else 'does NOT fit'} a {gigabytes} GB card.")
    return 0 if fits else 1
