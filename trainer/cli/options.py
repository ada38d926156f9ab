"""Options shared by several commands.

The training config as flags, made from `TrainConfig` itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..config import ConfigField, TrainConfig, fields, load_config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``, ``--preset NAME`` and a flag for every field, parts as
    ``--motion.weight``.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; flags win over it")
    basic = parser.add_argument_group("run")
    groups: dict[str, Any] = {}
    for record in fields():
        group = basic
        if record.part:
            if record.part not in groups:
                groups[record.part] = parser.add_argument_group(record.part)
            group = groups[record.part]
        group.add_argument(
            f"--{record.name.replace('_', '-')}",
            dest=record.name,
            default=None,
            metavar=record.type.upper(),
            help=_help(record),
        )


def _help(record: ConfigField) -> str:
    allowed = f" ({record.allowed})" if record.allowed else ""
    default = "" if record.default in (None, "", ()) else f" Default: {record.default}."
    return f"{record.help}{allowed}{default}".replace("%", "%%")


def config_from(options: argparse.Namespace, **fallbacks: Any) -> TrainConfig:
    """The config that flags, file and preset add up to; raises ConfigError naming the field."""
    given = vars(options)
    overrides = {r.name: given[r.name] for r in fields() if given.get(r.name) is not None}
    preset = overrides.pop("preset", None)
    for name, value in fallbacks.items():
        overrides.setdefault(name, value)
    return load_config(options.config, preset, overrides)
