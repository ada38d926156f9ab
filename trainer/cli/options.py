"""Options shared by several commands.

The training settings as flags, generated from `TrainConfig`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cards import CARDS
from ..config import ConfigError, ConfigField, TrainConfig, fields, load_config, with_overrides
from ..paths import BUNDLED
from ..settings import QUALITY_PRESETS
from ..settings.old import RETIRED

if TYPE_CHECKING:
    import torch

    from ..families import VideoModel

MODEL_PARTS = ("motion_module", "vae", "text_encoder", "tiny_vae", "other_expert")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``, presets, and a flag for every field, as ``--data.batch-size``.

    Those for experts are in ``--help-expert`` alone.
    """
    _add_presets(parser)
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for record in fields():
        if record.part not in groups:
            groups[record.part] = parser.add_argument_group(record.part)
        argument = _add_flag(groups[record.part], record.name, _help(record), record.expert)
        argument.metavar = record.type.upper()
    for name in RETIRED:
        _add_flag(parser, name, "", hidden=True)
    parser.add_argument(
        "--help-expert",
        action=_ExpertHelp,
        help="show every setting, including those of the method, and exit",
    )


def _add_presets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with settings; flags override it"
    )
    parser.add_argument(
        "--card",
        type=int,
        metavar="GB",
        help=f"preset for a graphics card with {', '.join(map(str, CARDS))} GB: clip size, LoRA "
        "rank, batch and `memory`",
    )
    steps = (f"{name} ({found.values['steps']} steps)" for name, found in QUALITY_PRESETS.items())
    parser.add_argument(
        "--quality",
        choices=tuple(QUALITY_PRESETS),
        help=f"training length: {', '.join(steps)}, with matching previews, checkpoints and "
        "example clips",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set any setting by name, such as motion.weight=2; may be repeated",
    )


def _add_flag(group: Any, name: str, text: str, hidden: bool) -> argparse.Action:
    flag = f"--{name.replace('_', '-')}"
    action = group.add_argument(flag, dest=name, default=None, help=text)
    if hidden:
        action.help, action.expert_help = argparse.SUPPRESS, text
    return action


class _ExpertHelp(argparse.Action):
    """Prints the help with the flags that the short one leaves out."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for action in parser._actions:
            action.help = getattr(action, "expert_help", "") or action.help
        parser.print_help()
        parser.exit()


def _help(record: ConfigField) -> str:
    allowed = f" ({record.allowed})" if record.allowed else ""
    default = "" if record.default in (None, "", ()) else f" Default: {record.default}."
    return f"{record.help}{allowed}{default}".replace("%", "%%")


def card_from(options: argparse.Namespace) -> int | None:
    """GB of the card that ``--card`` names, or ``--memory`` with a number."""
    text = getattr(options, "memory", None)
    return int(text) if text and text.isdecimal() else options.card


def config_from(options: argparse.Namespace, **fallbacks: Any) -> TrainConfig:
    """The config that flags, file and presets add up to; raises ConfigError naming the field."""
    given = vars(options)
    names = (*(record.name for record in fields()), *RETIRED)
    overrides = {name: given[name] for name in names if given.get(name) is not None}
    if overrides.get("memory", "").isdecimal():
        del overrides["memory"]
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"`--set {text}` has no value; write it like --set motion.weight=2.")
        overrides[name.strip()] = value
    preset = overrides.pop("preset", None)
    for name, value in fallbacks.items():
        overrides.setdefault(name, value)
    return load_config(options.config, preset, overrides, card_from(options), options.quality)


def add_model_arguments(parser: argparse.ArgumentParser, default: str | None = BUNDLED) -> None:
    """``--model`` and the companions that some base models need."""
    shown = f" ({default})" if default else ""
    parser.add_argument(
        "--model",
        default=default,
        help=f"'{BUNDLED}', a diffusers folder, a Stable Diffusion 1.5 checkpoint or a transformer "
        f"file of Wan{shown}",
    )
    known = {record.name: record for record in fields()}
    for name in MODEL_PARTS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=Path, metavar="PATH", help=_help(known[name]))


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """``--device``, as `hardware.device` of a training."""
    record = next(record for record in fields() if record.name == "hardware.device")
    parser.add_argument("--device", default="auto", choices=record.choices, help=_help(record))


SWAP = "--blocks-to-swap"


def add_swap_argument(parser: argparse.ArgumentParser) -> None:
    """``--blocks-to-swap``, as `hardware.blocks_to_swap` of a training."""
    parser.add_argument(
        SWAP,
        type=int,
        metavar="N",
        help="blocks of the base model that wait in main memory, for models larger than the card, "
        "which then computes in bf16 where it can (with a LoRA in its run's folder: as that run; "
        "else 0)",
    )


def blocks_to_swap_from(options: argparse.Namespace) -> int:
    """How many blocks wait: as asked for, else as in the run that the LoRA lies in. Raises
    ValueError, and ConfigError for a run whose settings cannot be read.
    """
    from ..runs.folder import Run

    count, lora = options.blocks_to_swap, options.lora
    if count is not None and count < 0:
        raise ValueError(f"`{SWAP} {count}` must be 0 or more.")
    if count is not None or lora is None:
        return count or 0
    run = Run(lora.absolute().parent)
    return run.config().hardware.blocks_to_swap if run.config_path.is_file() else 0


def dtype_from(options: argparse.Namespace) -> torch.dtype:
    """What the base model is read in: fp32, or as training reads it where it is too large for the
    card.
    """
    import torch

    from ..distill.student import base_dtype

    waiting = blocks_to_swap_from(options)
    return base_dtype("auto", device_from(options)) if waiting else torch.float32


def place(model: VideoModel, options: argparse.Namespace) -> VideoModel:
    """``model`` on the device that the flags name, with blocks waiting as they say. Raises
    ValueError.
    """
    return model.placed(device_from(options), blocks_to_swap_from(options), SWAP)


def device_from(options: argparse.Namespace) -> torch.device:
    """The device that ``--device`` names. Raises ValueError for one that is not there."""
    from ..distill.loop import make_accelerator

    config = with_overrides(TrainConfig(), {"hardware.device": options.device})
    return make_accelerator(config).device


def model_from(
    options: argparse.Namespace, name: str | None = None, dtype: torch.dtype | None = None
) -> VideoModel:
    """The base model that the flags of `add_model_arguments` name, in ``dtype`` (fp32); raises
    ModelError.
    """
    import torch

    from ..data.cache import ContentCache
    from ..families import load_model

    companions = {part: getattr(options, part) for part in MODEL_PARTS}
    model = load_model(name or options.model, dtype or torch.float32, **companions)
    model.text_store = ContentCache()
    print(f"Base model {model.name}; licence of its weights: {model.licence}.", file=sys.stderr)
    return model
