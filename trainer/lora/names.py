"""Converts between the names of a layer: diffusers' path, kohya's, the original checkpoint's, a
motion LoRA's.

Underscore names are turned back into paths by the words that layers are made of, so that no base
model is needed to read them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..models.motion_module import MODULE, diffusers_path, original_path
from ..models.sd15 import original_name
from .pairs import KOHYA_PREFIX, LoraError, LoraPair, kohya_name, layers_of

if TYPE_CHECKING:
    from ..families.record import LayerNames

MOTION = ".motion_modules."
ATTENTION = re.compile(r"(.*\.attention_blocks\.\d+)\.(to_[qkv]|to_out)(\.0)?")
PROCESSOR = ".processor."
LORA = "_lora"


def module_path(name: str, layers: LayerNames) -> str | None:
    """The diffusers path of an underscore name; None for an unknown name.

    `lora_unet_down_blocks_0_attentions_0_proj_in`, and the same layer by its original name,
    `lora_unet_input_blocks_1_1_proj_in`. ``layers`` are those of its family.
    """
    if not name.startswith(KOHYA_PREFIX):
        return None
    path = ".".join(re.findall(f"{layers.words}|[a-z0-9]+", name.removeprefix(KOHYA_PREFIX)))
    if kohya_name(path) != name:
        return None
    return layers.path_of(path) or path


def with_paths(pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """Pairs under module paths, whatever names a file gave them. Raises LoraError."""
    found: dict[str, LoraPair] = {}
    layers = layers_of(pairs)
    for name, pair in pairs.items():
        path = module_path(name, layers) if name.startswith(KOHYA_PREFIX) else name
        if path is None or path in found:
            why = "is not a layer of a UNet" if path is None else f"is `{path}`, which occurs twice"
            raise LoraError(f"`{name}` {why}; export the LoRA again.")
        found[path] = pair
    return found


def webui_name(path: str) -> str:
    """The name of an image layer by its place in the original checkpoint. Raises LoraError."""
    original = original_name(path)
    if original is None:
        raise LoraError(f"`{path}` is not a layer of Stable Diffusion 1.5.")
    return kohya_name(original)


def motion_lora_name(path: str) -> str:
    """Key, without `.down.weight`, of a motion module's layer in the authors' motion LoRAs.

    AnimateDiff-Evolved takes `processor.` and `_lora` out again and adds `.0` after `to_out`.
    """
    original = original_path(path)
    attention = ATTENTION.fullmatch(original)
    if attention is not None:
        return f"{attention[1]}{PROCESSOR}{attention[2]}{LORA}"
    return original + LORA


def motion_lora_path(name: str) -> str | None:
    """The inverse of `motion_lora_name`, for a key without `_lora`; None for other layers."""
    if MODULE not in name:
        return None
    plain = name.replace(PROCESSOR, ".")
    if plain.endswith(".to_out"):
        plain += ".0"
    return diffusers_path(plain)
