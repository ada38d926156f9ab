"""The published base models as shapes without contents: for estimates, benchmarks and key tests.

Configurations are those of the published folders and files: ``ali-vilab/text-to-video-ms-1.7b``
(ZeroScope v2 has the same), and Stable Diffusion 1.5 with AnimateDiff's motion module v1-5-2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel, UNetMotionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..diffusion.noise import VariancePreserving
from ..families import FAMILIES
from ..families.base import VideoModel
from ..families.codec import FrameCodec
from ..families.text import ClipText

_CHANNELS = (320, 640, 1280, 1280)
_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


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


ARCHITECTURES: dict[str, Architecture] = {
    "modelscope": Architecture(
        unet=lambda: UNet3DConditionModel(
            sample_size=32,
            block_out_channels=_CHANNELS,
            layers_per_block=2,
            cross_attention_dim=1024,
            attention_head_dim=64,
        ),
        text={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        size=256,
        betas="scaled_linear",
    ),
    "animatediff": Architecture(
        unet=lambda: UNetMotionModel(
            sample_size=64,
            block_out_channels=_CHANNELS,
            layers_per_block=2,
            cross_attention_dim=768,
            num_attention_heads=8,
            motion_max_seq_length=32,
            motion_num_attention_heads=8,
            use_motion_mid_block=True,
        ),
        text={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        size=512,
        betas="linear",
    ),
}


def skeleton(family: str, device: torch.device | str = "meta") -> VideoModel:
    """The full-size model of ``family``, 16 frames, without a tokenizer, frozen.

    On "meta" it has no contents and costs nothing; on another device it has random weights. Raises
    ValueError for a family without a published architecture here.
    """
    if family not in ARCHITECTURES:
        raise ValueError(f"`family`={family!r} is not known; use {', '.join(ARCHITECTURES)}.")
    return build_skeleton(family, ARCHITECTURES[family], device)


def build_skeleton(
    family: str, shape: Architecture, device: torch.device | str = "meta"
) -> VideoModel:
    """A model of ``family`` with the networks of ``shape``; see `skeleton`."""
    record = next(f for f in FAMILIES if f.name == family)
    scheduler = {**_BETAS, "beta_schedule": shape.betas}
    with torch.device(device):
        unet, vae = shape.unet(), AutoencoderKL(**{**_VAE, **shape.vae})
        text_encoder = CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, **shape.text))
    return VideoModel(
        family=record,
        name=f"{family}-{shape.size}px",
        path=Path(f"no {family} files"),
        network=unet,
        codec=FrameCodec(vae),
        text=ClipText(text_encoder, None),
        noise=VariancePreserving.from_config(scheduler),
        frames=16,
        height=shape.size,
        width=shape.size,
        fps=8,
        base_hash="",
        licence=record.licence,
    ).freeze()
