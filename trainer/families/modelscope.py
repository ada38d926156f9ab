"""The ModelScopeT2V family: UNet3DConditionModel folders in diffusers' layout, the embedded mini
model included.

ModelScopeT2V is ``ali-vilab/text-to-video-ms-1.7b`` (16 frames, 256 px); ZeroScope v2 576w has the
same architecture.
"""

from __future__ import annotations

from dataclasses import replace
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

from ..cards import CardPreset, Speed
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
from ..paths import BUNDLED, bundled
from .base import Companions, Family, ModelError, VideoModel, read_schedule
from .codec import FrameCodec
from .record import Base, BaseFiles, Graph, Loader, Shelf
from .text import ClipText, clip_counter
from .unet import CHANNELS, IMAGE_LAYERS, Architecture, build_skeleton

PLAIN_ATTENTION_TOKENS = 256  # up to here two matrix products beat the fused kernel on a CPU
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHED = ("unet", "vae", "text_encoder")
WEIGHTS = (".safetensors", ".bin")
UNET_CLASS = "UNet3DConditionModel"
FULL_SIZE = Architecture(
    unet=lambda: UNet3DConditionModel(
        sample_size=32,
        block_out_channels=CHANNELS,
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
)
"""``ali-vilab/text-to-video-ms-1.7b``; ZeroScope v2 has the same."""


def matches(path: Path) -> bool:
    """True for a diffusers folder whose UNet is a UNet3DConditionModel."""
    config = path / "unet" / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == UNET_CLASS


def load(path: Path, dtype: torch.dtype, companions: Companions) -> VideoModel:
    """Read a diffusers folder; raises ModelError naming the part that is missing or broken."""
    _check_parts(path)
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
        companions={} if companions.vae is None else {"vae": companions.vae.name},
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


def _check_parts(path: Path) -> None:
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


def lacks(folder: Path) -> list[str]:
    """Parts of a diffusers folder that are not there, or have no weights."""
    found = [part for part in PARTS if not (folder / part).is_dir()]
    for part in WEIGHED:
        files = (folder / part).glob("*") if (folder / part).is_dir() else ()
        if part not in found and not any(file.suffix in WEIGHTS for file in files):
            found.append(f"the weights in {part}")
    return found


def skeleton(device: torch.device | str) -> VideoModel:
    """The published model without its weights."""
    return build_skeleton(FAMILY, FULL_SIZE, device)


def graph(base: BaseFiles) -> Graph:
    """`Load Video Model`; the embedded model comes with the pack."""
    directory = "" if bundled(base.name) else "diffusers"
    widgets = {"model_name": base.name, "weight_dtype": "default"}
    return Graph((Loader("MCM_LoadVideoModel", widgets, base.name, directory),))


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
    layers=replace(
        IMAGE_LAYERS,
        markers=("temp_attentions", "transformer_in"),
        words=f"temp_(?:attentions|convs)|transformer_in|{IMAGE_LAYERS.words}",
    ),
    bases=(
        Base("modelscope", "ModelScope text-to-video (or ZeroScope)", 1024),
        Base(BUNDLED, "the built-in mini model", 64, (64, 64, 8)),
    ),
    cards=(
        CardPreset(8, 16, 256, 256, 32, batch=1, accumulation=4, memory="tight"),
        CardPreset(12, 16, 256, 256, 64, batch=2, accumulation=2),
        CardPreset(16, 16, 256, 256, 64, batch=4, accumulation=1),
        CardPreset(24, 24, 320, 576, 64, batch=2, accumulation=2),
        CardPreset(48, 24, 320, 576, 64, batch=4, accumulation=1, frames_per_clip=4),
    ),
    skeleton=skeleton,
    counter=clip_counter,
    speed=Speed(6.1, 2.2, "an H100; most cards are slower"),
    shelf=Shelf(lacks=lacks),
    graph=graph,
    published={
        "text-to-video-ms-1.7b": "ali-vilab/text-to-video-ms-1.7b",
        "zeroscope_v2_576w": "cerspense/zeroscope_v2_576w",
    },
)
