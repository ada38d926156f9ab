"""Stable Diffusion 1.5's UNet: its layout, and its names in original checkpoints and in diffusers.

Both name the same layers. Original files count blocks through (`input_blocks.4.1`), diffusers
by level and kind (`down_blocks.1.attentions.0`). Source: CompVis `ldm/modules/diffusionmodules/
openaimodel.py` and diffusers' `unet_2d_condition.py`, both for two layers per level.
"""

from __future__ import annotations

import re
from functools import lru_cache

LAYERS = 2  # resnets per level on the way down; one more on the way up
LEVELS = 4
HEADS = 8
TEXT_WIDTH = 768
LATENT_SCALE = 0.18215
UNET_PREFIX = "model.diffusion_model."
TEXT_PREFIX = "cond_stage_model.transformer."
VAE_PREFIX = "first_stage_model."

ROOTS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?"
)
MIDDLE = re.compile(r"(mid_block\.(resnets|attentions)\.\d+)(?:\.(.+))?")


def original_name(path: str) -> str | None:
    """The original name of the layer or weight at diffusers' ``path``.

    `down_blocks.0.attentions.0.proj_in` -> `input_blocks.1.1.proj_in`. None for a path that the
    image model does not have, such as a motion module's.
    """
    root = next((r for r in ROOTS if path == r or path.startswith(f"{r}.")), None)
    middle = MIDDLE.fullmatch(path)
    if middle is not None and root is not None:
        return _joined(ROOTS[root], _inner(middle[2], middle[3]))
    if root is not None:
        return ROOTS[root] + path[len(root) :]
    found = BLOCK.fullmatch(path)
    if found is None:
        return None
    way, level, kind, number, rest = found.groups()
    return _joined(_block(way, int(level), kind, int(number)), _inner(kind, rest))


def diffusers_name(original: str) -> str | None:
    """The diffusers path of a layer or weight by its original name; None where there is none."""
    head = original
    while head:
        if head in _known():
            return _known()[head] + original[len(head) :]
        head = head.rpartition(".")[0]
    return None


@lru_cache(maxsize=1)
def _known() -> dict[str, str]:
    """Original name -> path of every layer that the two name differently; attentions as wholes."""
    roots = [root for root in ROOTS if ".resnets." not in root]
    resnets = [root for root in ROOTS if ".resnets." in root]
    for way, layers in (("down", LAYERS), ("up", LAYERS + 1)):
        for level in range(LEVELS):
            block = f"{way}_blocks.{level}"
            resnets += [f"{block}.resnets.{number}" for number in range(layers)]
            roots += [f"{block}.attentions.{number}" for number in range(layers)]
            roots.append(f"{block}.{way}samplers.0.conv")
    paths = [*roots, *(f"{resnet}.{part}" for resnet in resnets for part in RESNET)]
    return {name: path for path in paths if (name := original_name(path)) is not None}


def _block(way: str, level: int, kind: str, number: int) -> str:
    step = LAYERS + 1
    slot = 0 if kind == "resnets" else 1
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{step * level + step}.0"
        return f"input_blocks.{step * level + number + 1}.{slot}"
    if kind == "upsamplers":  # behind the attention, which the first level has not
        return f"output_blocks.{step * level + step - 1}.{1 if level == 0 else 2}"
    return f"output_blocks.{step * level + number}.{slot}"


def _inner(kind: str, rest: str | None) -> str:
    if not rest:
        return ""
    first, _, last = rest.partition(".")
    if kind == "resnets":
        first = RESNET.get(first, first)
    elif kind == "downsamplers":
        first = {"conv": "op"}.get(first, first)
    return _joined(first, last)


def _joined(head: str, tail: str) -> str:
    return f"{head}.{tail}" if tail else head
