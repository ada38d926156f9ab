"""Options shared by several commands.

The training config as flags, made from `TrainConfig` itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConfigField, TrainConfig, fields, load_config, with_overrides
from ..paths import BUNDLED

if TYPE_CHECKING:
    import torch

    from ..families import VideoModel

MODEL_PARTS = ("motion_module", "vae")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``, ``--preset NAME`` and a flag for every field, parts as
    ``--motion.weight``.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; flags win over it")
    parser.add_argument(
        "--memory",
        type=int,
        metavar="GB",
        help="start from the preset for a card of 8, 12, 16, 24 or 48 GB: clip size, LoRA rank and "
        "memory options",
    )
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
    return load_config(options.config, preset, overrides, given.get("memory"))


def add_model_arguments(parser: argparse.ArgumentParser, default: str | None = BUNDLED) -> None:
    """``--model`` and the companions that some base models need."""
    shown = f" ({default})" if default else ""
    parser.add_argument(
        "--model",
        default=default,
        help=f"'{BUNDLED}', a diffusers folder, or a Stable Diffusion 1.5 checkpoint{shown}",
    )
    known = {record.name: record for record in fields()}
    for name in MODEL_PARTS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=Path, metavar="PATH", help=_help(known[name]))


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """``--device``, as `hardware.device` of a training."""
    record = next(record for record in fields() if record.name == "hardware.device")
    parser.add_argument("--device", default="auto", choices=record.choices, help=_help(record))


def device_from(options: argparse.Namespace) -> torch.device:
    """The device that ``--device`` names. Raises ValueError for one that is not there."""
    from ..distill.loop import make_accelerator

    config = with_overrides(TrainConfig(), {"hardware.device": options.device})
    return make_accelerator(config).device


def model_from(options: argparse.Namespace, name: str | None = None) -> VideoModel:
    """The base model that the flags of `add_model_arguments` name; raises ModelError."""
    from ..families import load_model

    companions = {part: getattr(options, part) for part in MODEL_PARTS}
    model = load_model(name or options.model, **companions)
    print(f"Base model {model.name}; licence of its weights: {model.licence}.", file=sys.stderr)
    return model
