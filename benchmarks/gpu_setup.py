"""What ``gpu.py`` measures: sessions of each family with random weights, and their variants."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import repository  # noqa: F401
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKLWan,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)

from trainer.config import TrainConfig, load_config
from trainer.distill.batch import Batch, Session
from trainer.distill.distiller import Distiller
from trainer.distill.estimate import made_batch
from trainer.distill.session import build_optimizers, build_parts, build_student, new_memory
from trainer.distill.student import ParameterEma, base_dtype
from trainer.families import VideoModel, family_named
from trainer.families.causal import CausalCodec
from trainer.families.unet import Architecture, build_skeleton
from trainer.models.tiny_vae import TinyVae
from trainer.runs.guards import NanGuard

GIB = 1 << 30

_SMALL = (32, 64, 64, 64)
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_VAE = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
_UNETS: dict[str, Architecture] = {
    "modelscope": Architecture(
        unet=lambda: UNet3DConditionModel(
            sample_size=8,
            block_out_channels=_SMALL,
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=16,
        ),
        text=_TEXT,
        size=64,
        betas="scaled_linear",
        vae=_VAE,
    ),
    "animatediff": Architecture(
        unet=lambda: UNetMotionModel(
            sample_size=8,
            block_out_channels=_SMALL,
            layers_per_block=1,
            cross_attention_dim=64,
            num_attention_heads=2,
            motion_num_attention_heads=2,
        ),
        text=_TEXT,
        size=64,
        betas="linear",
        vae=_VAE,
    ),
}


def _small_unet(family: str, device: torch.device | str) -> VideoModel:
    return build_skeleton(family_named(family), _UNETS[family], device)


def _small_wan(family: str, device: torch.device | str) -> VideoModel:
    """Two layers, 9 frames of 32 px, small autoencoders; text states as wide as the real ones."""
    with torch.device(device):
        network = WanTransformer3DModel(num_attention_heads=1, num_layers=2, ffn_dim=96)
        codec = CausalCodec(AutoencoderKLWan(base_dim=4), TinyVae((8, 6, 6, 4)))
    shapes = family_named(family).skeleton("meta")
    sizes = {"frames": 9, "height": 32, "width": 32}
    return replace(shapes, network=network, codec=codec, **sizes).freeze()


TINY: dict[str, Callable[[str, torch.device | str], VideoModel]] = {
    **dict.fromkeys(_UNETS, _small_unet),
    "wan": _small_wan,
}
"""Makes a small model of a family, by the family's name."""
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32": {"hardware.precision": "fp32", "hardware.decode_precision": "fp32"},
    "fp16": {"hardware.precision": "fp16"},
    "bf16, idle parts on the card": {"hardware.offload_idle": False},
    "bf16, channels last": {"hardware.channels_last": True},
    "bf16, compiled": {"hardware.compile": True},
    "bf16, compiled, channels last": {
        "hardware.compile": True,
        "hardware.channels_last": True,
    },
    "bf16, recomputing": {"hardware.gradient_checkpointing": True},
    "bf16, recomputing, compiled": {
        "hardware.gradient_checkpointing": True,
        "hardware.compile": True,
    },
    "bf16, recomputing, optimizer offloaded": {
        "hardware.gradient_checkpointing": True,
        "optim.offload": True,
    },
    "bf16, recomputing, 8-bit Adam": {
        "hardware.gradient_checkpointing": True,
        "optim.optimizer": "adamw8bit",
    },
}
"""Settings by name, on top of `config_of`; each variant is measured at full size."""
COMPILED_ON_CARDS = "hardware.compile"


def variants(device: torch.device) -> dict[str, dict[str, Any]]:
    """Those that can run here: 8-bit Adam with bitsandbytes, compilation on a card."""
    eight_bit = importlib.util.find_spec("bitsandbytes") is not None
    return {
        name: settings
        for name, settings in VARIANTS.items()
        if (eight_bit or settings.get("optim.optimizer") != "adamw8bit")
        and (device.type == "cuda" or COMPILED_ON_CARDS not in settings)
    }


def config_of(device: torch.device, features: str, settings: dict[str, Any]) -> TrainConfig:
    """One clip of the model's own size, LoRA rank 64, every term of the loss, and ``settings``."""
    return load_config(
        overrides={
            "model": "random weights",
            "data.batch_size": 1,
            "lora.rank": 64,
            "adversarial.features": features,
            "hardware.device": device.type,
            "hardware.precision": "bf16",
            "hardware.decode_precision": "bf16",
            **settings,
        }
    )


def model_of(family: str, tiny: bool, device: torch.device | str, dtype: torch.dtype) -> VideoModel:
    """A model of ``family`` with random weights, made on ``device`` in ``dtype``."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        made = TINY[family](family, device) if tiny else family_named(family).skeleton(device)
    finally:
        torch.set_default_dtype(kept)
    for codec in (made.codec, made.codec.quick):
        codec.vae.float()
    return made


def distiller_of(
    family: str, tiny: bool, device: torch.device, config: TrainConfig
) -> tuple[Distiller, Batch]:
    """A distiller that can take `whole_step` on the batch."""
    torch.manual_seed(0)
    dtype = base_dtype(config.hardware.precision, device)
    model = model_of(family, tiny, device, dtype)
    parts = build_parts(config, build_student(config, model, device, lambda _: None), device)
    optimizer, judging = build_optimizers(config, parts)
    no_data: Any = None  # the batch is made up
    session = Session(
        accelerator=Accelerator(mixed_precision="no", cpu=device.type == "cpu"),
        parts=parts,
        sources=no_data,
        prompts=no_data,
        motions=no_data,
        frames=no_data,
        end_maps=None,
        replay=no_data,
        memory=new_memory(config),
        optimizer=optimizer,
        discriminator_optimizer=judging,
        ema=ParameterEma(parts.parameters, config.optim.ema_decay),
    )
    return Distiller(session, NanGuard()), made_batch(parts)


def machine(device: torch.device) -> dict[str, Any]:
    """What a number was measured on."""
    found: dict[str, Any] = {"system": platform.platform(), "torch": torch.__version__}
    if device.type == "cuda":
        found["graphics_card"] = torch.cuda.get_device_name()
        found["memory_gib"] = torch.cuda.get_device_properties(device).total_memory / GIB
    return found
