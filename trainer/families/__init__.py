"""Base models by family, and how a name or a path becomes a loaded `VideoModel`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..paths import BUNDLED, MINI, bundled
from . import animatediff, modelscope
from .base import Companions, Family, ModelError, VideoModel

FAMILIES: list[Family] = [modelscope.FAMILY, animatediff.FAMILY]
"""Every kind of base model; the first that recognises a path reads it."""

__all__ = [
    "FAMILIES",
    "MINI",
    "Companions",
    "Family",
    "ModelError",
    "VideoModel",
    "family_of",
    "load_model",
    "resolve_model",
]


def resolve_model(name: str) -> Path:
    """The file or folder that ``name`` means.

    "mini", or the path of a diffusers folder or of a checkpoint file. Raises ModelError.
    """
    path = bundled(name) or Path(name).expanduser().resolve()
    if not path.exists():
        raise ModelError(
            f"Base model '{name}' was not found at '{path}'. Use '{BUNDLED}' for the embedded "
            "model, the path of a diffusers folder, or that of a Stable Diffusion 1.5 checkpoint "
            "(docs/models.md)."
        )
    return path


def family_of(path: Path) -> Family:
    """The family whose layout ``path`` has; raises ModelError when none fits."""
    for family in FAMILIES:
        if family.matches(path):
            return family
    titles = ", ".join(family.title for family in FAMILIES)
    if path.is_file():
        raise ModelError(
            f"'{path}' is not a weights file. A Stable Diffusion 1.5 checkpoint ends in "
            ".safetensors or .ckpt."
        )
    raise ModelError(
        f"'{path}' is not a text-to-video model that this version supports ({titles}): its "
        "unet/config.json is missing or names another class. Choose the folder that contains "
        "unet/, vae/, text_encoder/, tokenizer/ and scheduler/."
    )


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    motion_module: Path | None = None,
    vae: Path | None = None,
) -> VideoModel:
    """Load base model ``name`` ("mini" or a path), frozen, on the CPU.

    ``motion_module`` and ``vae`` are the paths of its companions, where it takes any.
    """
    path = resolve_model(name)
    return family_of(path).load(path, dtype, Companions(motion_module, vae))
