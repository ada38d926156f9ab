"""A whole diffusers text-to-video folder as MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...trainer.models.weights import read_json
from .catalog import is_small_wan
from .clip import load_native_clip
from .info import VideoInfo
from .model import load_native_model, read_info
from .vae import latent_format, load_native_vae


def load_video_model(folder: Path, weight_dtype: str = "default") -> tuple[Any, Any, Any]:
    """``(MODEL, CLIP, VAE)`` of ``folder``; the small parts first, so that a wrong folder fails
    early.

    Raises ValueError naming the part that is missing, damaged or of another kind.
    """
    if is_small_wan(folder):
        from .small_wan import load_small_wan

        return load_small_wan(folder, weight_dtype)
    vae = load_native_vae(folder / "vae")
    clip = load_native_clip(folder, torch.float32 if weight_dtype == "fp32" else None)
    model = load_native_model(folder, weight_dtype, latent_format(folder / "vae", vae))
    return model, clip, vae


def folder_info(folder: Path) -> VideoInfo:
    """What the MODEL of ``folder`` will say of itself; no weights are read."""
    if is_small_wan(folder):
        from .small_wan import small_info

        return small_info(folder)
    config = read_json(folder / "unet" / "config.json")
    return read_info(folder, config, read_json(folder / "scheduler" / "scheduler_config.json"))
