"""The AnimateDiff family: any Stable Diffusion 1.5 with a motion module, as one video UNet.

The image model is a checkpoint file in original keys or a diffusers folder; the motion module is a
file of the authors (`mm_sd_v15_v2`, `v3_sd15_mm`, ...) or a diffusers `MotionAdapter`. Nothing is
looked up online: all configurations are here (AnimateDiff, arXiv 2307.04725).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ..cards import CardPreset, Speed
from ..models.autoencoder import build_autoencoder, read_autoencoder
from ..models.checkpoint import ImageModel, read_image_model
from ..models.clip import build_text_encoder, clip_tokenizer, read_text_encoder, read_tokenizer
from ..models.downloads import IMAGE_MODELS, MOTION_MODULES, VAES, Need
from ..models.motion_module import MotionModule, MotionModuleError, read_motion_module
from ..models.sd15 import HEADS, LAYERS, LEVELS, TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from ..models.weights import (
    FILE_SUFFIXES,
    build_network,
    mended_by,
    read_file,
    read_json,
    shapes_only,
    tensors_hash,
)
from .base import Companions, Family, ModelError, VideoModel, read_schedule
from .codec import FrameCodec
from .record import Base, BaseFiles, Graph, Loader, Shelf
from .text import ClipText, clip_counter
from .unet import CHANNELS, IMAGE_LAYERS, Architecture, build_skeleton

UNET_CLASS = "UNet2DConditionModel"
ENCODING = ".pe"
SCHEDULER_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",  # the image model's is scaled_linear
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
FULL_SIZE = Architecture(
    unet=lambda: UNetMotionModel(
        sample_size=64,
        block_out_channels=CHANNELS,
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
)
"""Stable Diffusion 1.5 with the motion module v1-5-2."""
TEXT_KEY = "cond_stage_model.transformer.text_model.encoder.layers.0.layer_norm1.weight"
INPUT_KEY = "model.diffusion_model.input_blocks.0.0.weight"
LICENCE = (
    "AnimateDiff motion modules: Apache-2.0; the checkpoint: its own, CreativeML Open RAIL-M for "
    "Stable Diffusion 1.5"
)
HOW = (
    "Set one with `--motion-module`: a file such as mm_sd_v15_v2.ckpt or v3_sd15_mm.ckpt, or the "
    "folder of a diffusers MotionAdapter (docs/models.md)."
)


def matches(path: Path) -> bool:
    """True for a weights file, and for a diffusers folder whose UNet is an image model's."""
    if path.is_file():
        return path.suffix.lower() in FILE_SUFFIXES
    config = path / "unet" / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == UNET_CLASS


def load(path: Path, dtype: torch.dtype, companions: Companions) -> VideoModel:
    """Read image model, motion module, text encoder and VAE, frozen, on the CPU.

    Raises ModelError (or its MotionModuleError) naming the file that is missing or does not fit.
    """
    with mended_by("motion_module"):
        if companions.motion_module is None:
            raise ModelError(
                f"'{path}' is an image model; AnimateDiff needs a motion module. {HOW}"
            )
        module = read_motion_module(companions.motion_module.expanduser().resolve())
    image = read_image_model(path)
    with mended_by("motion_module"):
        check_pair(image, module)
    text = _text(image, path, dtype)
    with mended_by("vae"):
        vae = _vae(image, companions.vae)
    unet, base_hash = _unet(image, module, dtype)
    scheduler = SCHEDULER_CONFIG | {"prediction_type": image.prediction}
    return VideoModel(
        family=FAMILY,
        name=path.name if path.is_dir() else path.stem,
        path=path,
        network=unet,
        codec=FrameCodec(vae),
        companions={} if companions.vae is None else {"vae": companions.vae.name},
        text=text,
        noise=read_schedule(scheduler, path),
        frames=min(16, module.max_frames),
        height=512,
        width=512,
        fps=8,
        base_hash=base_hash,
        licence=FAMILY.licence,
        max_frames=module.max_frames,
        motion_module=companions.motion_module.name,
    ).freeze()


def _text(image: ImageModel, path: Path, dtype: torch.dtype) -> ClipText:
    """The text encoder of a checkpoint or of a folder, with its tokenizer or CLIP-L's."""
    if path.is_dir():
        encoder = read_text_encoder(path / "text_encoder", dtype)
    else:
        encoder = build_text_encoder(image.text, path, dtype=dtype)
    _check_text(encoder, image)
    folder = path / "tokenizer"
    return ClipText(encoder, read_tokenizer(folder) if folder.is_dir() else clip_tokenizer())


def missing(path: Path, companions: Companions) -> tuple[Need, ...]:
    """Motion module, VAE and text encoder, where neither ``path`` nor ``companions`` bring them."""
    needs = []
    if companions.motion_module is None:
        about = f"'{path.name}' is an image model; a motion module turns it into a video model."
        needs.append(Need("Motion module", "motion_module", about, MOTION_MODULES))
    has_text, has_vae = _parts_inside(path)
    if not has_vae and companions.vae is None:
        needs.append(Need("VAE", "vae", f"'{path.name}' has none inside.", VAES))
    if not has_text:
        about = f"'{path.name}' has none inside; choose a whole checkpoint of Stable Diffusion 1.5."
        needs.append(Need("Text encoder", "model", about, IMAGE_MODELS))
    return tuple(needs)


def _parts_inside(path: Path) -> tuple[bool, bool]:
    """Whether a text encoder and a VAE are in it; also True for files that `load` refuses."""
    if path.is_dir():
        return (path / "text_encoder").is_dir(), (path / "vae").is_dir()
    try:
        with shapes_only():
            names = list(read_file(path))
    except ModelError:
        return True, True
    if not any(name.startswith(UNET_PREFIX) for name in names):
        return True, True
    inside = (any(n.startswith(prefix) for n in names) for prefix in (TEXT_PREFIX, VAE_PREFIX))
    has_text, has_vae = inside
    return has_text, has_vae


def check_pair(image: ImageModel, module: MotionModule) -> None:
    """Raise MotionModuleError unless the motion module has the image model's channels."""
    layers = (LAYERS,) * LEVELS
    if (module.channels, module.layers) != (image.channels, layers):
        raise MotionModuleError(
            f"Motion module '{module.name}' is for channels {module.channels} with {module.layers} "
            f"layers, '{image.path.name}' has {image.channels} with {layers}. Use a motion module "
            "for Stable Diffusion 1.5, not for XL."
        )


def unet_options(image: ImageModel, module: MotionModule) -> dict[str, Any]:
    """The arguments of diffusers' `UNetMotionModel`."""
    return {
        "sample_size": 64,
        "block_out_channels": image.channels,
        "layers_per_block": LAYERS,
        "cross_attention_dim": image.text_width,
        "num_attention_heads": HEADS,
        **module.unet_options(),
    }


def _unet(image: ImageModel, module: MotionModule, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """The video UNet and its hash, which is one for all forms of the same weights."""
    options = unet_options(image, module)
    weights = {**image.unet, **module.weights}
    trained = {key: value for key, value in weights.items() if not key.endswith(ENCODING)}
    unet = build_network(lambda: UNetMotionModel(**options), weights, image.path, dtype)
    return unet, tensors_hash(trained)


def _vae(image: ImageModel, chosen: Path | None) -> nn.Module:
    if chosen is not None:
        return read_autoencoder(chosen.expanduser().resolve())
    if image.path.is_dir():
        return read_autoencoder(image.path / "vae")
    if not image.vae:
        raise ModelError(
            f"'{image.path}' has no VAE. Set one with `--vae`, such as "
            "vae-ft-mse-840000-ema-pruned.safetensors, or use a checkpoint that has one."
        )
    return build_autoencoder(image.vae, image.path)


def _check_text(text_encoder: Any, image: ImageModel) -> None:
    width = text_encoder.config.hidden_size
    if width != image.text_width:
        raise ModelError(
            f"The text encoder of '{image.path}' is {width} wide, its UNet reads "
            f"{image.text_width}. Download the model again."
        )


def denoise(unet: nn.Module, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
    """UNetMotionModel needs the text once per frame, with the frames of a clip in a row."""
    rows = text.repeat_interleave(latents.shape[2], dim=0)
    return unet(latents, time, encoder_hidden_states=rows).sample


def holds(file: Path, header: Mapping[str, Any]) -> bool:
    """Whether ``file`` is a Stable Diffusion 1.5 checkpoint, by its header; .ckpt files have none
    and count when they are named so.
    """
    if file.suffix != ".safetensors":
        return any(part in file.name.lower() for part in ("v1-5", "sd15", "sd-1.5", "sd1.5"))
    shape = header.get(INPUT_KEY, {}).get("shape", [0, 0])
    return TEXT_KEY in header and shape[1:2] == [4]


def skeleton(device: torch.device | str) -> VideoModel:
    """The published model without its weights."""
    return build_skeleton(FAMILY, FULL_SIZE, device)


def graph(base: BaseFiles) -> Graph:
    """`Load Checkpoint`, then `AnimateDiff Motion Module`. A diffusers folder of an image model has
    no loader in ComfyUI: the same weights as one file are named.
    """
    checkpoint = base.file or f"{base.name}.safetensors"
    module = base.companions.get("motion_module", "")
    return Graph(
        (
            Loader("CheckpointLoaderSimple", {"ckpt_name": checkpoint}, checkpoint, "checkpoints"),
            Loader("MCM_AnimateDiff", {"motion_module": module}, module, "animatediff_models"),
        )
    )


FAMILY = Family(
    name="animatediff",
    title="AnimateDiff (Stable Diffusion 1.5 with a motion module)",
    architecture="animatediff-sd15",
    licence=LICENCE,
    frames=tuple(range(1, 33)),
    matches=matches,
    load=load,
    missing=missing,
    denoise=denoise,
    blocks=(
        ResnetBlock2D,
        Transformer2DModel,
        AnimateDiffTransformer3D,
        Downsample2D,
        Upsample2D,
    ),
    layers=replace(
        IMAGE_LAYERS, markers=("motion_modules",), words=f"motion_modules|{IMAGE_LAYERS.words}"
    ),
    bases=(Base("animatediff", "AnimateDiff on Stable Diffusion 1.5", 768, (512, 512, 16)),),
    cards=(
        CardPreset(8, 16, 384, 384, 16, batch=1, accumulation=4, memory="tight"),
        CardPreset(12, 16, 512, 512, 32, batch=1, accumulation=4),
        CardPreset(16, 16, 512, 512, 64, batch=2, accumulation=2),
        CardPreset(24, 16, 512, 512, 64, batch=4, accumulation=1),
        CardPreset(48, 24, 512, 768, 64, batch=4, accumulation=1, frames_per_clip=4),
    ),
    skeleton=skeleton,
    counter=clip_counter,
    takes=("motion_module", "vae"),
    speed=Speed(5.5, 4.3, "an H100; most cards are slower"),
    shelf=Shelf("checkpoints", holds, takes_motion=True),
    graph=graph,
    published={
        "v1-5-pruned-emaonly.safetensors": (
            "stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main"
        ),
        "v1-5-pruned-emaonly-fp16.safetensors": (
            "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main"
        ),
        "mm_sd_v14.ckpt": "guoyww/animatediff/resolve/main",
        "mm_sd_v15.ckpt": "guoyww/animatediff/resolve/main",
        "mm_sd_v15_v2.ckpt": "guoyww/animatediff/resolve/main",
        "v3_sd15_mm.ckpt": "guoyww/animatediff/resolve/main",
        "mm_sd15_v2.safetensors": "conrevo/AnimateDiff-A1111/resolve/main/motion_module",
        "mm_sd15_v3.safetensors": "conrevo/AnimateDiff-A1111/resolve/main/motion_module",
        "animatediff-motion-adapter-v1-5-2": "guoyww/animatediff-motion-adapter-v1-5-2",
    },
)
