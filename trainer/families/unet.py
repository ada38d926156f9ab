"""What the families with a UNet of diffusers share: names of layers, and shapes without contents.

Shapes are those of the published folders and files, for estimates, benchmarks and key tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..diffusion.noise import VariancePreserving
from ..models.sd15 import diffusers_name
from .base import Family, VideoModel
from .codec import FrameCodec
from .record import Base, LayerNames
from .text import ClipText

CHANNELS = (320, 640, 1280, 1280)
_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
IMAGE_LAYERS = LayerNames(
    markers=(),
    words="conv_(?:in|out|norm_out|shortcut)"
    "|(?:down|up|input|output|mid|middle|transformer)_blocks?"
    "|(?:in|emb|out)_layers|linear_[12]|proj_(?:in|out)|skip_connection"
    "|time_(?:embedding|embed|emb_proj)|to_(?:q|k|v|out)",
    text_layer="attn2.to_k",
    # The official MCM LoRAs leave these alone; they carry no look and no motion of their own.
    untouched=("conv_in", "conv_out", "time_embedding"),
    path_of=diffusers_name,
    official=("resnets", "samplers", "attn1", "attn2", "ff", "time_emb_proj", "mid_block"),
)
"""Of an image model, by diffusers' names and by those of the original checkpoint; a family adds the
markers of its layers over time. The second attention of such a layer does not read the text."""
IMAGE_MODELS = (
    Base("sd15", "Stable Diffusion 1.5 (images, no motion)", 768),
    Base("sd21", "Stable Diffusion 2.1 (images, no motion)", 1024),
    Base("sdxl", "Stable Diffusion XL (images, no motion)", 2048),
)
"""What a LoRA without a marker may be made for."""


@dataclass(frozen=True)
class Architecture:
    """How the networks of a model are built; ``text`` and ``vae`` are options of its text encoder
    and autoencoder, ``size`` its side in pixels.
    """

    unet: Callable[[], nn.Module]
    text: dict[str, Any]
    size: int
    betas: str
    vae: dict[str, Any] = field(default_factory=dict)


def build_skeleton(
    family: Family, shape: Architecture, device: torch.device | str = "meta"
) -> VideoModel:
    """The model of ``family`` with the networks of ``shape``, 16 frames, without a tokenizer,
    frozen.

    On "meta" it has no contents and costs nothing; on another device it has random weights.
    """
    scheduler = {**_BETAS, "beta_schedule": shape.betas}
    with torch.device(device):
        unet, vae = shape.unet(), AutoencoderKL(**{**_VAE, **shape.vae})
        text_encoder = CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, **shape.text))
    return VideoModel(
        family=family,
        name=f"{family.name}-{shape.size}px",
        path=Path(f"no {family.name} files"),
        network=unet,
        codec=FrameCodec(vae),
        text=ClipText(text_encoder, None),
        noise=VariancePreserving.from_config(scheduler),
        frames=16,
        height=shape.size,
        width=shape.size,
        fps=8,
        base_hash="",
        licence=family.licence,
    ).freeze()
