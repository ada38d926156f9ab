"""A whole diffusers text-to-video folder as MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .clip import load_native_clip
from .model import load_native_model
from .vae import latent_format, load_native_vae


def load_video_model(folder: Path, weight_dtype: str = "default") -> tuple[Any, Any, Any]:
    """``(MODEL, CLIP, VAE)`` of ``folder``; the small parts first, so that a wrong folder fails
    early.

    Raises ValueError naming the part that is missing, damaged or of another kind.
    """
    vae = load_native_vae(folder / "vae")
    clip = load_native_clip(folder, torch.float32 if weight_dtype == "fp32" else None)
    model = load_native_model(folder, weight_dtype, latent_format(folder / "vae", vae))
    return model, clip, vae
