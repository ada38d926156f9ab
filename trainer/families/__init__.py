"""Base models by family, and how a name or a path becomes a loaded :class:`VideoModel`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..paths import MINI
from . import modelscope
from .base import Family, ModelError, VideoModel

FAMILIES: tuple[Family, ...] = (modelscope.FAMILY,)

__all__ = [
    "FAMILIES",
    "MINI",
    "Family",
    "ModelError",
    "VideoModel",
    "family_of",
    "load_model",
    "resolve_model",
]


def resolve_model(name: str) -> Path:
    """The folder that ``name`` means.

    "mini", or the path of a diffusers folder. Raises ModelError.
    """
    path = MINI if name == "mini" else Path(name).expanduser().resolve()
    if not path.is_dir():
        raise ModelError(
            f"Base model '{name}' was not found at '{path}'. Use 'mini' for the embedded model, "
            "or the path of a "
            "diffusers folder (docs: README, section 'Base models')."
        )
    return path


def family_of(path: Path) -> Family:
    """The family whose layout ``path`` has; raises ModelError when none fits."""
    for family in FAMILIES:
        if family.matches(path):
            return family
    titles = ", ".join(family.title for family in FAMILIES)
    raise ModelError(
        f"'{path}' is not a text-to-video model this version knows ({titles}): its "
        "unet/config.json is missing "
        "or names another class. Point at the folder that holds unet/, vae/, text_encoder/, "
        "tokenizer/, scheduler/."
    )


def load_model(name: str, dtype: torch.dtype = torch.float32) -> VideoModel:
    """Load base model ``name`` ("mini" or a path), frozen, on the CPU."""
    path = resolve_model(name)
    return family_of(path).load(path, dtype)
