"""Try two real steps and one preview before a long run: peak memory, time per step, total time,
disk.

  python -m trainer preflight --model mini --images my_style

Takes the same settings as `train` and writes nothing but caches. If the settings do not fit, it
says which would.
"""

from __future__ import annotations

import argparse

from .options import add_config_arguments, config_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(options: argparse.Namespace) -> int:
    config = config_from(options)
    from ..distill.preflight import preflight

    report = preflight(config)
    print(report.text())
    return 0 if report.fits else 1
