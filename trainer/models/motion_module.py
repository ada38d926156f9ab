"""Reads AnimateDiff motion modules of all published file layouts.

Two layouts exist. The authors' files (`mm_sd_v14`, `mm_sd_v15`, `mm_sd_v15_v2`, `v3_sd15_mm` and
most community modules) wrap each layer in `temporal_transformer` and store the positional encoding
of every attention; diffusers (`MotionAdapter`) stores it once a block. Sources: AnimateDiff
`animatediff/models/motion_module.py`; diffusers `convert_animatediff_checkpoint_to_diffusers`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .weights import ModelError, read_file, read_json, read_weights

HEADS = 8  # attention heads of every motion module published for Stable Diffusion 1.5
MAX_FRAMES = 32  # of v2, v3 and diffusers, when neither weights nor config tell
GROUPS = 32  # of the normalisation before each motion module
SHOWN = 3  # examples in an error
PE_TOLERANCE = 4e-3  # an encoding stored in bf16 still counts as the sinusoid it was made from

ROOT = re.compile(r"(down_blocks|up_blocks|mid_block|conv_in)\.")
PART = re.compile(r"(?:(down_blocks|up_blocks)\.(\d+)|(mid_block))\.motion_modules\.(\d+)\.(.+)")
ORIGINAL_NAMES = (
    ("temporal_transformer.", ""),
    (".attention_blocks.0.pos_encoder.", ".pos_embed."),
    (".attention_blocks.0.", ".attn1."),
    (".attention_blocks.1.", ".attn2."),
    (".norms.0.", ".norm1."),
    (".norms.1.", ".norm2."),
    (".ff_norm.", ".norm3."),
)
MODULE = ".temporal_transformer."
ENCODING = ".pos_embed."
SECOND_ENCODING = ".attention_blocks.1.pos_encoder."


class MotionModuleError(ModelError):
    """A motion module that cannot be found, read or used; the message says what to do."""


@dataclass(frozen=True, eq=False)
class MotionModule:
    """Weights under diffusers' paths (`down_blocks.0.motion_modules.0.proj_in.weight`), and the
    shape they describe: `channels` and `layers` (motion modules a down block) from the first block
    to the last, `depth` transformer blocks a module, `max_frames` positions.
    """

    name: str
    weights: dict[str, Tensor]
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    depth: int
    mid_block: bool
    max_frames: int
    heads: int = HEADS

    def unet_options(self) -> dict:
        """The arguments of diffusers' `UNetMotionModel` that this module decides."""
        return {
            "motion_max_seq_length": self.max_frames,
            "motion_num_attention_heads": self.heads,
            "use_motion_mid_block": self.mid_block,
            "temporal_transformer_layers_per_block": self.depth,
            "temporal_transformer_layers_per_mid_block": self.depth,
        }


def read_motion_module(path: Path) -> MotionModule:
    """Read a motion module: a file of either layout, or the folder of a diffusers `MotionAdapter`.

    Pickled files are read with `weights_only`, which runs no code. Raises ValueError: unreadable
    (damaged, missing, code inside), or MotionModuleError: not a motion module.
    """
    if path.is_dir():
        config = _adapter_config(path)
        return motion_module(read_weights(path), path.name, config)
    return motion_module(read_file(path), path.stem)


def motion_module(
    state: Mapping[str, object], name: str, config: Mapping[str, Any] | None = None
) -> MotionModule:
    """One form from the state dict of a file; `config` is that of a diffusers `MotionAdapter`.

    Raises MotionModuleError when keys are left over or the layers are no motion module of SD 1.5.
    """
    config = config or {}
    weights = convert_keys(state, name)
    layers, depth = _count_layers(weights, name)
    _check_up_blocks(weights, layers, name)
    channels = tuple(
        weights[f"down_blocks.{i}.motion_modules.0.norm.weight"].shape[0]
        for i in range(len(layers))
    )
    heads = config.get("motion_num_attention_heads", HEADS)
    if not isinstance(heads, int) or any(width % heads for width in channels):
        raise MotionModuleError(
            f"'{name}' has `motion_num_attention_heads`={heads}; use one number that divides its "
            f"channels {channels}."
        )
    encodings = {key: value for key, value in weights.items() if key.endswith("pos_embed.pe")}
    lengths = {int(value.shape[1]) for value in encodings.values()}
    if len(lengths) > 1:
        raise MotionModuleError(
            f"'{name}' has positional encodings of {sorted(lengths)} frames; all must be equal. "
            "Download the file again."
        )
    max_frames = lengths.pop() if lengths else int(config.get("motion_max_seq_length", MAX_FRAMES))
    _complete_encodings(weights, max_frames)
    return MotionModule(
        name=name,
        weights=weights,
        channels=channels,
        layers=layers,
        depth=depth,
        mid_block=any(key.startswith("mid_block.") for key in weights),
        max_frames=max_frames,
        heads=heads,
    )


def convert_keys(state: Mapping[str, object], name: str) -> dict[str, Tensor]:
    """The weights of a motion module under diffusers' paths; wrappers such as `module.` are cut.

    Raises MotionModuleError for another kind of file and for keys that mean nothing here.
    """
    inner = state.get("state_dict", state)
    if not isinstance(inner, Mapping):
        raise MotionModuleError(f"'{name}' holds no weights by name; choose a motion module.")
    weights: dict[str, Tensor] = {}
    seconds: dict[str, Tensor] = {}
    unknown = []
    for key, value in inner.items():
        found = ROOT.search(key)
        part = PART.fullmatch(key[found.start() :]) if found else None
        if not isinstance(value, Tensor):
            continue  # settings that some files carry along
        if part is None or "lora" in key or ".processor." in key:
            unknown.append(key)
        elif SECOND_ENCODING in key:
            seconds[diffusers_path(part[0].replace(SECOND_ENCODING, ".pos_embed."))] = value
        else:
            weights[diffusers_path(part[0])] = value
    _refuse_unknown(unknown, len(weights), name)
    for key, value in seconds.items():
        if key not in weights or not torch.equal(weights[key], value):
            raise MotionModuleError(
                f"'{name}' has different positional encodings in one block ({key}); only equal "
                "ones are supported, as in all official motion modules."
            )
    return weights


def sinusoid(frames: int, channels: int) -> Tensor:
    """The positional encoding (1, frames, channels) of AnimateDiff, as diffusers computes it."""
    position = torch.arange(frames).unsqueeze(1)
    rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    encoding = torch.zeros(1, frames, channels)
    encoding[0, :, 0::2] = torch.sin(position * rate)
    encoding[0, :, 1::2] = torch.cos(position * rate)
    return encoding


def diffusers_path(key: str) -> str:
    """A layer or weight of the authors' files by diffusers' path."""
    for original, ours in ORIGINAL_NAMES:
        key = key.replace(original, ours)
    return key


def original_path(path: str) -> str:
    """A layer or weight at diffusers' ``path`` as the authors' files name it."""
    found = PART.fullmatch(path)
    if found is None:
        raise MotionModuleError(f"`{path}` is not a layer of a motion module.")
    inner = f".{found[5]}"
    for original, ours in ORIGINAL_NAMES[1:]:
        inner = inner.replace(ours, original)
    return path[: found.start(5)] + MODULE[1:-1] + inner


def original_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A motion module in the authors' keys: the inverse of `convert_keys`, encodings twice."""
    state = {}
    for path, value in weights.items():
        key = original_path(path)
        state[key] = value
        if ENCODING in path:
            state[key.replace(".attention_blocks.0.", ".attention_blocks.1.")] = value.clone()
    return state


def _refuse_unknown(unknown: list[str], matched: int, name: str) -> None:
    examples = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
    if any("lora" in key for key in unknown):
        raise MotionModuleError(
            f"'{name}' is a LoRA ({examples}), not a motion module. Load a motion module such as "
            "mm_sd_v15_v2 here. Load the LoRA with a LoRA loader."
        )
    if matched == 0:
        raise MotionModuleError(
            f"'{name}' is not an AnimateDiff motion module: none of its {len(unknown)} weights is "
            f"one ({examples or 'the file is empty'}). Choose mm_sd_v15_v2, v3_sd15_mm or another "
            "module for Stable Diffusion 1.5."
        )
    if unknown:
        raise MotionModuleError(
            f"'{name}' has {len(unknown)} weights besides its motion modules ({examples}), which "
            "this version cannot use (PIA, CameraCtrl and the like). Choose a plain motion module."
        )


def _count_layers(weights: Mapping[str, Tensor], name: str) -> tuple[tuple[int, ...], int]:
    """Motion modules in each down block, and the transformer blocks of each module."""
    parts = [PART.fullmatch(key) for key in weights]
    down = sorted({(int(p[2]), int(p[4])) for p in parts if p and p[1] == "down_blocks"})
    blocks = [index for index, _ in down]
    layers = tuple(blocks.count(index) for index in sorted(set(blocks)))
    complete = down == [(i, j) for i, count in enumerate(layers) for j in range(count)]
    depths: dict[str, int] = {}
    for part in parts:
        block = re.match(r"transformer_blocks\.(\d+)\.", part[5]) if part else None
        if part and block:
            module = part[0][: part.start(5)]
            depths[module] = max(depths.get(module, 0), int(block[1]) + 1)
    needed = [f"down_blocks.{i}.motion_modules.0.norm.weight" for i in range(len(layers))]
    if not layers or not complete or any(key not in weights for key in needed):
        raise MotionModuleError(
            f"'{name}' is an incomplete motion module: its down blocks hold {layers} modules with "
            "gaps. Download the file again."
        )
    if len(set(depths.values())) != 1:
        raise MotionModuleError(
            f"'{name}' has modules of {sorted(set(depths.values()))} transformer blocks; only "
            "motion modules of one depth are supported."
        )
    return layers, next(iter(depths.values()))


def _check_up_blocks(weights: Mapping[str, Tensor], layers: tuple[int, ...], name: str) -> None:
    """Raise MotionModuleError unless each up block has one module more than its down block."""
    parts = [PART.fullmatch(key) for key in weights]
    up = {(int(p[2]), int(p[4])) for p in parts if p and p[1] == "up_blocks"}
    wanted = {(i, j) for i, count in enumerate(reversed(layers)) for j in range(count + 1)}
    if not up:
        raise MotionModuleError(
            f"'{name}' has motion modules in the down blocks only (headless), as the motion part "
            "of a SparseCtrl has. Choose a whole motion module such as mm_sd_v15_v2 or v3_sd15_mm."
        )
    if up != wanted:
        raise MotionModuleError(
            f"'{name}' is an incomplete motion module: its up blocks hold {len(up)} modules, "
            f"{len(wanted)} belong there. Download the file again."
        )


def _complete_encodings(weights: dict[str, Tensor], frames: int) -> None:
    """Give each block its encoding in fp32: the exact sinusoid, or what the file trained."""
    blocks = {key[: -len("norm1.weight")] for key in weights if key.endswith(".norm1.weight")}
    for block in blocks:
        key = block + "pos_embed.pe"
        exact = sinusoid(frames, weights[block + "norm1.weight"].shape[0])
        stored = weights.get(key)
        if stored is None or (
            stored.shape == exact.shape and (stored.float() - exact).abs().max() <= PE_TOLERANCE
        ):
            weights[key] = exact
        else:
            weights[key] = stored.float()


def _adapter_config(folder: Path) -> dict:
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "MotionAdapter":
        raise MotionModuleError(
            f"'{folder}' holds a {config.get('_class_name')}, not a MotionAdapter. Choose the "
            "folder of a motion module."
        )
    if config.get("motion_norm_num_groups", GROUPS) != GROUPS:
        raise MotionModuleError(
            f"'{folder}' has `motion_norm_num_groups`={config['motion_norm_num_groups']}; only "
            f"{GROUPS} works in diffusers' UNetMotionModel."
        )
    return config


def is_adapter_folder(path: Path) -> bool:
    """Whether `path` is the folder of a diffusers `MotionAdapter`."""
    try:
        return read_json(path / "config.json").get("_class_name") == "MotionAdapter"
    except ValueError:
        return False
