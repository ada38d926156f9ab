"""Try two real steps and one preview before a long run: peak memory, time per step, total time,
disk.

  python -m trainer preflight --model mini --images my_style
  python -m trainer preflight --config my.toml --json report.json

Takes the same settings as `train` and writes nothing but caches. If the settings do not fit, it
says which would.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..runs.files import atomic_write
from .options import add_config_arguments, config_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report here")


def run(options: argparse.Namespace) -> int:
    config = config_from(options)
    from ..distill.preflight import preflight

    report = preflight(config)
    print(report.text())
    if options.json is not None:
        text = json.dumps(report.to_json(), indent=1, allow_nan=False)
        atomic_write(options.json, text.encode("utf-8"))
    return 0 if report.fits else 1
