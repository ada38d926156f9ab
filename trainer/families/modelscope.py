"""The ModelScopeT2V family: UNet3DConditionModel folders in diffusers' layout, the embedded mini
model included.

ModelScopeT2V is ``ali-vilab/text-to-video-ms-1.7b`` (16 frames, 256 px); ZeroScope v2 576w has the
same architecture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..diffusion.schedule import NoiseSchedule
from .base import Family, ModelError, VideoModel, file_hash

PLAIN_ATTENTION_TOKENS = 256  # up to here two matrix products beat the fused kernel on a CPU
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"Cannot read '{path}': {error}. Copy the model folder again.") from error


def matches(path: Path) -> bool:
    """True for a diffusers folder whose UNet is a UNet3DConditionModel."""
    config = path / "unet" / "config.json"
    return config.is_file() and _json(config).get("_class_name") == "UNet3DConditionModel"


def load(path: Path, dtype: torch.dtype = torch.float32) -> VideoModel:
    """Read a diffusers folder; raises ModelError naming the part that is missing or broken."""
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing:
        raise ModelError(
            f"'{path}' lacks {', '.join(missing)}; a ModelScope model is a diffusers folder with "
            f"{', '.join(PARTS)}."
        )
    try:
        networks = _load_networks(path, dtype)
    except Exception as error:  # every library below raises its own kinds for a damaged file
        raise ModelError(f"'{path}' could not be loaded: {error}") from error
    unet, vae, text_encoder, tokenizer = networks
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    about = _json(path / "mcm.json") if (path / "mcm.json").is_file() else {}
    side = int(unet.config.sample_size) * 8
    if unet.config.sample_size**2 <= PLAIN_ATTENTION_TOKENS:
        unet.set_attn_processor(AttnProcessor())
    return VideoModel(
        family=FAMILY,
        name=about.get("name", path.name),
        path=path,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        schedule=NoiseSchedule.from_config(scheduler),
        scheduler_config=scheduler,
        frames=about.get("frames", 16),
        height=about.get("height", side),
        width=about.get("width", side),
        fps=about.get("fps", 8),
        base_hash=file_hash(_weights(path / "unet")),
        licence=about.get("licence", FAMILY.licence),
    ).freeze()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def _load_networks(path: Path, dtype: torch.dtype) -> tuple[Any, Any, Any, Any]:
    vae_class = _json(path / "vae" / "config.json").get("_class_name", "AutoencoderKL")
    vae_type = AutoencoderTiny if vae_class == "AutoencoderTiny" else AutoencoderKL
    unet = UNet3DConditionModel.from_pretrained(path / "unet", torch_dtype=dtype)
    vae = vae_type.from_pretrained(path / "vae", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(path / "text_encoder", dtype=dtype)
    tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
    vae.to(memory_format=torch.channels_last)  # a fifth faster on a CPU, more on a card
    return unet, vae, text_encoder, tokenizer


def predict_eps(unet: nn.Module, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """UNet3DConditionModel repeats the text for every frame itself."""
    return unet(latents, timesteps, encoder_hidden_states=text).sample


FAMILY = Family(
    name="modelscope",
    title="ModelScopeT2V / ZeroScope",
    architecture="modelscope-t2v",
    licence="CC-BY-NC-4.0",
    frames=(8, 16, 24, 32),
    matches=matches,
    load=load,
    predict_eps=predict_eps,
)
