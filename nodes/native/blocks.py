"""Maps the blocks of core's UNet to a diffusers video UNet: where they begin and end, and their
names.

Core counts input blocks (the first convolution, then each residual layer and each downsampler), one
middle block, and output blocks (each residual layer; the last of a level holds its upsampler).
ModelScope's and Stable Diffusion's UNets have the same blocks; layers over time belong to the block
whose output they end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

PREFIX = "diffusion_model."
LAST_OF_LAYER = ("motion_modules", "temp_attentions", "temp_convs", "attentions", "resnets")
"""What ends a residual layer, the later in the forward the earlier here."""
_PLACED = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.")
_MIDDLE = re.compile(r"mid_block\.(\w+?)\.(\d+)\.")
_OUTSIDE = {
    "conv_in.": "input_blocks.0.",
    "transformer_in.": "input_blocks.0.",
    "time_embedding.": "time_embed.",
    "conv_norm_out.": "out.",
    "conv_out.": "out.",
}
_CORE_NAME = re.compile(r"^((input|output)_blocks\.\d+|middle_block\.\d|time_embed|out)\.")


@dataclass(frozen=True, eq=False)
class Layer:
    """One of core's blocks. ``place`` is core's name of it, such as ``("input", 4)``.

    ``entry`` is the first module that sees its input, ``exit`` the one whose output (a tensor, or a
    tuple that starts with it) is the block's. ``attention`` is its spatial transformer, if it has
    one. ``skip`` counts the channels of the skip connection that it feeds (input) or takes (output)
    and is 0 in the middle. All tensors there are (rows, C, h, w), rows = frames as batch.
    """

    place: tuple[str, int]
    entry: nn.Module
    exit: nn.Module
    attention: nn.Module | None
    skip: int = 0


def down_layers(unet: Any) -> list[Layer]:
    """Core's input blocks of a `UNetMotionModel` or `UNet3DConditionModel`, in order."""
    first = getattr(unet, "transformer_in", unet.conv_in)
    found = [Layer(("input", 0), unet.conv_in, first, None, unet.conv_in.out_channels)]
    for block in unet.down_blocks:
        for index, resnet in enumerate(block.resnets):
            place = ("input", len(found))
            ends = _end(block, index), _attention(block, index)
            found.append(Layer(place, resnet, *ends, resnet.out_channels))
        for sampler in block.downsamplers or ():
            place = ("input", len(found))
            found.append(Layer(place, sampler, sampler, None, sampler.out_channels))
    return found


def middle_layer(unet: Any) -> Layer:
    """Core's middle block."""
    block = unet.mid_block
    return Layer(("middle", 0), block.resnets[0], block, _attention(block, 0))


def up_layers(unet: Any) -> list[Layer]:
    """Core's output blocks, in order; block i takes the skip connection of input block -1 - i."""
    skips = [layer.skip for layer in down_layers(unet)][::-1]
    found: list[Layer] = []
    for block in unet.up_blocks:
        for index, resnet in enumerate(block.resnets):
            number = len(found)
            ends = _end(block, index), _attention(block, index)
            found.append(Layer(("output", number), resnet, *ends, skips[number]))
    return found


def _end(block: nn.Module, index: int) -> nn.Module:
    lists = (getattr(block, name, None) for name in LAST_OF_LAYER)
    return next(modules[index] for modules in lists if modules)


def _attention(block: nn.Module, index: int) -> nn.Module | None:
    attentions = getattr(block, "attentions", None)
    return attentions[index] if attentions else None


def to_core_key(key: str, unet: Any) -> str:
    """`key` of a video MODEL's weight behind the name of core's block that it belongs to.

    ``diffusion_model.mid_block.attentions.0.norm.weight`` becomes
    ``diffusion_model.middle_block.1.mid_block.attentions.0.norm.weight``: nodes that read core's
    names (Model Merge Blocks) can locate it, and `from_core_key` restores the key.
    """
    path = key.removeprefix(PREFIX)
    for outside, name in _OUTSIDE.items():
        if path.startswith(outside):
            return f"{PREFIX}{name}{path}"
    placed, middle = _PLACED.match(path), _MIDDLE.match(path)
    if placed:
        return f"{PREFIX}{_numbered(placed, unet)}{path}"
    if middle:
        convolution = middle[1] in ("resnets", "temp_convs")
        return f"{PREFIX}middle_block.{2 * int(middle[2]) if convolution else 1}.{path}"
    return key


def _numbered(match: re.Match[str], unet: Any) -> str:
    """Core's name of the block that contains the path in `match`."""
    way, level, kind, index = match[1], int(match[2]), match[3], int(match[4])
    blocks = getattr(unet, f"{way}_blocks")
    before = sum(len(block.resnets) for block in blocks[:level])
    if way == "up":
        last = len(blocks[level].resnets) - 1
        return f"output_blocks.{before + (last if kind == 'upsamplers' else index)}."
    before += sum(len(block.downsamplers or ()) for block in blocks[:level])
    offset = len(blocks[level].resnets) if kind == "downsamplers" else index
    return f"input_blocks.{1 + before + offset}."


def from_core_key(key: str) -> str:
    """The MODEL's own key again; a key that `to_core_key` did not make stays as it is."""
    path = key.removeprefix(PREFIX)
    own = _CORE_NAME.sub("", path, count=1)
    made = own != path and own.startswith(("down_", "mid_", "up_", *_OUTSIDE))
    return PREFIX + own if made else key
