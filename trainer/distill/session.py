"""Everything a run is made of, built from its config.

Model, adapter, data, discriminator, optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..adversarial.features import FeatureNetwork, build_features
from ..adversarial.heads import Discriminator
from ..adversarial.losses import GradientRatio
from ..config import TrainConfig
from ..families import VideoModel, load_model
from ..lora.adapter import lora_parameters
from ..motion.learned import MotionRepresentation, build_representation
from .checkpointing import enable_checkpointing
from .ema import ParameterEma
from .frames import RealFrames
from .motions import MotionSource, Replay
from .prompts import PromptSet, build_prompts
from .sources import (
    Log,
    Progress,
    add_adapter,
    load_images,
    load_motions,
    real_frames,
)
from .student import Student

REPLAY_CAPACITY = 256


@dataclass
class Session:
    """The parts of one run. ``discriminator`` is None when the adversarial weight is 0."""

    config: TrainConfig
    accelerator: Accelerator
    student: Student
    prompts: PromptSet
    motions: MotionSource
    frames: RealFrames
    replay: Replay
    representation: MotionRepresentation
    features: FeatureNetwork | None
    discriminator: Discriminator | None
    ratio: GradientRatio
    optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer | None
    ema: ParameterEma
    latent_shape: tuple[int, int, int, int]
    height: int
    width: int
    fps: int

    @property
    def model(self) -> VideoModel:
        return self.student.model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return lora_parameters(self.model.unet)


def build_session(
    config: TrainConfig, accelerator: Accelerator, log: Log, progress: Progress
) -> Session:
    """Load, scan, encode and roll out what ``config`` asks for.

    Raises ModelError, DataError, PromptError, LoraError or ValueError, each saying what to change.
    """
    model = load_model(config.model, motion_module=config.motion_module, vae=config.vae)
    log(f"Base model {model.name}; licence of its weights: {model.licence}.")
    height, width = config.data.height or model.height, config.data.width or model.width
    shape = model.latent_shape(config.data.frames or model.frames, height, width)
    if config.adversarial.weight and config.images is None:
        log("No image folder: frames of the motion source stand in for style images.")
    images = load_images(config, model, height, width, log)
    captions = [] if images is None else [record.caption for record in images.records]
    prompts = build_prompts(config.prompts, model.path / "prompts.txt", captions, config.trigger)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    model.to(accelerator.device, dtype)
    model.training_decode = _decode_dtype(config.hardware.decode_precision, accelerator.device)
    add_adapter(config, model, log)
    # TemporalConvLayer has dropout: student, target and generated passes run without it.
    model.unet.eval()
    if config.hardware.gradient_checkpointing:
        enable_checkpointing(model.unet)
    student = Student(model, config.trajectory.timestep_scaling, config.trajectory.sigma_data)
    motions, prompts = load_motions(config, student, prompts, shape, (height, width), log, progress)
    parts = _trainables(config, model, accelerator.device)
    return Session(
        config=config,
        accelerator=accelerator,
        student=student,
        prompts=prompts,
        motions=motions,
        frames=real_frames(images, motions, model, prompts),
        replay=Replay(REPLAY_CAPACITY, shape),
        ratio=GradientRatio(config.adversarial.ratio, config.adversarial.ratio_ema),
        ema=ParameterEma(lora_parameters(model.unet), config.optim.ema_decay),
        latent_shape=shape,
        height=height,
        width=width,
        fps=config.data.fps or model.fps,
        **parts,
    )


def _decode_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 if "bf16", or if "auto" where the processor computes in it; else fp32, on cards
    too.
    """
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else None


def _trainables(config: TrainConfig, model: VideoModel, device: torch.device) -> dict[str, Any]:
    representation = build_representation(
        config.motion.representation,
        model.latent_channels,
        ema_decay=config.motion.head_ema,
        seed=config.seed,
    ).to(device)
    groups = [{"params": lora_parameters(model.unet), "lr": config.optim.lr}]
    if representation.parameters():
        groups.append({"params": representation.parameters(), "lr": config.motion.head_lr})
    features = discriminator = discriminator_optimizer = None
    if config.adversarial.weight:
        features = build_features(config.adversarial.features, model.name).to(device)
        text_dim = model.pooled_text([""]).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = Discriminator(
                features.channels, text_dim, config.adversarial.head_channels
            ).to(device)
        discriminator_optimizer = torch.optim.AdamW(
            discriminator.parameters(),
            lr=config.adversarial.lr,
            betas=(0.0, 0.99),
            weight_decay=0.0,
        )
    return {
        "representation": representation,
        "features": features,
        "discriminator": discriminator,
        "optimizer": _optimizer(config, groups),
        "discriminator_optimizer": discriminator_optimizer,
    }


def _optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "betas": config.optim.betas,
        "weight_decay": config.optim.weight_decay,
    }
    if config.optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            "`optim.optimizer`='adamw8bit' needs the package bitsandbytes: `python -m pip "
            "install bitsandbytes`, "
            "or use 'adamw'."
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, **options)
