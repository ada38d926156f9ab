"""The ModelScopeT2V family: UNet3DConditionModel folders in diffusers' layout, the embedded mini
model included.

ModelScopeT2V is ``ali-vilab/text-to-video-ms-1.7b`` (16 frames, 256 px); ZeroScope v2 576w has the
same architecture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ..models.about import read_about
from ..models.autoencoder import read_autoencoder
from ..models.clip import read_text_encoder, read_tokenizer
from ..models.downloads import VIDEO_MODELS, Need
from ..models.weights import (
    build_network,
    file_hash,
    init_options,
    mended_by,
    read_json,
    read_weights,
    weight_files,
)
from .base import Companions, Family, ModelError, VideoModel, read_schedule
from .codec import FrameCodec
from .text import ClipText

PLAIN_ATTENTION_TOKENS = 256  # up to here two matrix products beat the fused kernel on a CPU
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
UNET_CLASS = "UNet3DConditionModel"


def matches(path: Path) -> bool:
    """True for a diffusers folder whose UNet is a UNet3DConditionModel."""
    config = path / "unet" / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == UNET_CLASS


def load(path: Path, dtype: torch.dtype, companions: Companions) -> VideoModel:
    """Read a diffusers folder; raises ModelError naming the part that is missing or broken."""
    _check_parts(path, companions)
    config = read_json(path / "unet" / "config.json")
    unet = _unet(path / "unet", config, dtype)
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    height, width = _sides(config)
    about = read_about(
        path, name=path.name, frames=16, height=height * 8, width=width * 8, fps=8,
        licence=FAMILY.licence, subjects=(),
    )  # fmt: skip
    with mended_by("model" if companions.vae is None else "vae"):
        vae = read_autoencoder(companions.vae or path / "vae")
    if height * width <= PLAIN_ATTENTION_TOKENS:
        unet.set_attn_processor(AttnProcessor())  # type: ignore[operator]
    return VideoModel(
        family=FAMILY,
        name=about["name"],
        path=path,
        network=unet,
        codec=FrameCodec(vae),
        text=ClipText(
            read_text_encoder(path / "text_encoder", dtype), read_tokenizer(path / "tokenizer")
        ),
        noise=read_schedule(scheduler, path),
        frames=about["frames"],
        height=about["height"],
        width=about["width"],
        fps=about["fps"],
        base_hash=file_hash(weight_files(path / "unet")),
        licence=about["licence"],
        subjects=tuple(about["subjects"]),
    ).freeze()


def missing(path: Path, companions: Companions) -> tuple[Need, ...]:
    """The parts of the diffusers folder that are not there."""
    lacking = [part for part in PARTS if not (path / part).is_dir()]
    if not lacking:
        return ()
    about = f"'{path}' is incomplete: {', '.join(lacking)} is missing. Copy the whole folder."
    return (Need("Base model", "model", about, VIDEO_MODELS),)


def _check_parts(path: Path, companions: Companions) -> None:
    if companions.motion_module is not None:
        raise ModelError(
            f"'{path}' is a video model and needs no `motion_module`; remove that setting, or use "
            "a Stable Diffusion 1.5 checkpoint as `model`."
        )
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing:
        raise ModelError(
            f"'{path}' lacks {', '.join(missing)}; a ModelScope model is a diffusers folder with "
            f"{', '.join(PARTS)}."
        )


def _unet(folder: Path, config: dict, dtype: torch.dtype) -> nn.Module:
    options = init_options(UNet3DConditionModel, config)
    weights = read_weights(folder)
    return build_network(lambda: UNet3DConditionModel(**options), weights, folder, dtype)


def _sides(config: dict) -> tuple[int, int]:
    """Latent height and width that the UNet was trained on."""
    sides = config.get("sample_size") or 32
    return (sides[0], sides[1]) if isinstance(sides, list) else (sides, sides)


def denoise(unet: nn.Module, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
    """UNet3DConditionModel repeats the text for every frame itself."""
    return unet(latents, time, encoder_hidden_states=text).sample


FAMILY = Family(
    name="modelscope",
    title="ModelScopeT2V / ZeroScope",
    architecture="modelscope-t2v",
    licence="CC-BY-NC-4.0",
    frames=(8, 16, 24, 32),
    matches=matches,
    load=load,
    missing=missing,
    denoise=denoise,
    blocks=(
        ResnetBlock2D,
        TemporalConvLayer,
        Transformer2DModel,
        TransformerTemporalModel,
        Downsample2D,
        Upsample2D,
    ),
)
