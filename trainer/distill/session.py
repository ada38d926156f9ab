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
from ..adversarial.reader import OFF, ClipReader, build_reader
from ..adversarial.terms import FrameTerms
from ..config import TrainConfig
from ..data.cache import ContentCache
from ..families import VideoModel, load_model
from ..lora.adapter import lora_parameters
from ..motion.learned import MotionRepresentation, build_representation
from .checkpointing import compile_blocks, enable_checkpointing
from .decoding import FrameDecoder
from .ema import ParameterEma
from .ends import EndMaps
from .frames import RealFrames
from .motions import MotionSource, Replay, TrajectoryLibrary
from .optimizers import build_optimizer
from .precision import (
    base_dtype,
    compute_lora_in_input_dtype,
    decoder_dtype,
    order_channels_last,
)
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
from .waits import IMAGES, MODEL

REPLAY_CAPACITY = 256


@dataclass
class Session:
    """The parts of one run. ``reader`` is the CLIP of the caption loss, None without one.

    ``discriminator`` is None when the adversarial weight is 0, ``end_maps`` also when content is
    not compared with the ends of stored trajectories.
    """

    config: TrainConfig
    accelerator: Accelerator
    student: Student
    decoder: FrameDecoder
    prompts: PromptSet
    motions: MotionSource
    frames: RealFrames
    replay: Replay
    representation: MotionRepresentation
    features: FeatureNetwork | None
    reader: ClipReader | None
    discriminator: Discriminator | None
    ratio: GradientRatio
    terms: FrameTerms
    end_maps: EndMaps | None
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
    def library(self) -> TrajectoryLibrary | None:
        """The teacher's rollouts if the motion loss aims at their ends, else None."""
        found = self.motions if self.config.aims_at_ends else None
        return found if isinstance(found, TrajectoryLibrary) else None

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
    device = accelerator.device
    progress(MODEL, 0, 0)
    model = load_model(
        config.model,
        base_dtype(config.hardware.precision, device),
        motion_module=config.motion_module,
        vae=config.vae,
    )
    log(f"Base model {model.name}; licence of its weights: {model.licence}.")
    height, width = config.data.height or model.height, config.data.width or model.width
    shape = model.latent_shape(config.data.frames or model.frames, height, width)
    if config.recipe.adversarial.weight and config.images is None:
        log("No image folder: frames of the motion source stand in for style images.")
    if config.images is not None:
        progress(IMAGES, 0, 0)
    images = load_images(config, model, height, width, log)
    captions = [] if images is None else [record.caption for record in images.records]
    prompts = build_prompts(config.prompts, model.path / "prompts.txt", captions, config.trigger)
    student = build_student(config, model, device, log)
    size = (height, width)
    motions, prompts = load_motions(
        config, student, prompts, shape, size, accelerator, log, progress
    )
    decoder = build_decoder(config, model, device)
    parts = trained_parts(config, model, device)
    if config.recipe.adversarial.caption_weight and parts["features"] is not None:
        log(caption_loss(parts["features"], parts["reader"]))
    compared = (
        config.aims_at_ends and config.recipe.adversarial.content_weight and parts["features"]
    )
    return Session(
        config=config,
        accelerator=accelerator,
        student=student,
        decoder=decoder,
        prompts=prompts,
        motions=motions,
        frames=real_frames(images, motions, decoder, device, prompts),
        replay=Replay(REPLAY_CAPACITY, shape),
        end_maps=EndMaps(motions.clean, decoder, parts["features"], device) if compared else None,
        latent_shape=shape,
        height=height,
        width=width,
        fps=config.data.fps or model.fps,
        **parts,
    )


def caption_loss(features: FeatureNetwork, reader: ClipReader | None) -> str:
    """What judges captions in this run, or what it costs that nothing does."""
    if features.reads:
        return f"Caption loss: by the feature network {features.name}."
    return OFF if reader is None else f"Caption loss: CLIP score of frames, {reader.side} pixels."


def build_student(
    config: TrainConfig, model: VideoModel, device: torch.device, log: Log
) -> Student:
    """``model`` on ``device`` in its precision, with the adapter in its UNet; changes ``model``.

    Text encoder and autoencoder stay in main memory if the settings say so and ``device`` has a
    memory of its own.
    """
    hardware = config.hardware
    model.resting = hardware.offload_idle and device.type not in ("cpu", "mps")
    model.to(device, base_dtype(hardware.precision, device))
    add_adapter(config, model, log)
    model.unet.to(device)
    if model.dtype != torch.float32:
        compute_lora_in_input_dtype(model.unet)
    # TemporalConvLayer has dropout: student, target and generated passes run without it.
    model.unet.eval()
    if hardware.channels_last:
        order_channels_last(model.unet)
    if hardware.compile:
        compile_blocks(model.unet, ContentCache(config.data.cache).root / "compiled")
    if hardware.gradient_checkpointing:
        enable_checkpointing(model.unet)
    return Student(model)


def build_decoder(config: TrainConfig, model: VideoModel, device: torch.device) -> FrameDecoder:
    hardware = config.hardware
    dtype = decoder_dtype(hardware.decode_precision, device)
    return FrameDecoder(model, dtype, hardware.gradient_checkpointing)


def trained_parts(config: TrainConfig, model: VideoModel, device: torch.device) -> dict[str, Any]:
    """The parts of a `Session` that learn, or that weigh what is learned."""
    parameters = lora_parameters(model.unet)
    representation = build_representation(
        config.recipe.motion.representation,
        model.latent_channels,
        seed=config.seed,
    ).to(device)
    groups = [{"params": parameters, "lr": config.optim.lr}]
    if representation.parameters():
        groups.append({"params": representation.parameters(), "lr": config.recipe.motion.head_lr})
    features = reader = discriminator = discriminator_optimizer = None
    if config.recipe.adversarial.weight:
        features = build_features(config.recipe.adversarial.features, model.name).to(device)
        if config.recipe.adversarial.caption_weight:
            found = build_reader(config.recipe.adversarial.clip, features, model.dtype)
            reader = None if found is None else found.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = Discriminator(features.channels, model.text_dim).to(device)
        discriminator_optimizer = torch.optim.AdamW(
            discriminator.parameters(),
            lr=config.recipe.adversarial.lr,
            betas=(0.0, 0.99),
            weight_decay=0.0,
        )
    return {
        "representation": representation,
        "features": features,
        "reader": reader,
        "discriminator": discriminator,
        "terms": FrameTerms(),
        "ratio": GradientRatio(config.recipe.adversarial.ratio),
        "ema": ParameterEma(
            parameters, config.optim.ema_decay, "cpu" if config.optim.offload else None
        ),
        "optimizer": build_optimizer(config.optim, groups),
        "discriminator_optimizer": discriminator_optimizer,
    }
