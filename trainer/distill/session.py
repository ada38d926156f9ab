"""The parts of a run, built from its config: model, adapter, data, optimizers."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from ..adversarial.features import FeatureNetwork, build_features
from ..adversarial.frame_losses import LossMemory
from ..adversarial.frames import EndMaps
from ..adversarial.heads import Discriminator
from ..adversarial.losses import GradientRatio
from ..adversarial.reader import OFF, ClipReader, build_reader
from ..config import TrainConfig
from ..data.cache import ContentCache
from ..families import VideoModel
from ..models.block_swap import BlockSwap, swapped_blocks
from ..models.checkpointing import compile_blocks, enable_checkpointing
from ..motion.learned import build_representation
from ..motion.sources import Replay
from .batch import Session
from .optimizers import build_optimizer
from .plan import fitted
from .preview import preview_prompts
from .recipe import Recipe, plan_clips
from .sources import (
    Log,
    Progress,
    Sources,
    Stored,
    add_adapter,
    load_motions,
    open_sources,
    real_frames,
)
from .starts import STAGE as STARTS
from .starts import make_starts, preview_clips
from .student import (
    ParameterEma,
    StepParts,
    Student,
    base_dtype,
    compute_lora_in_input_dtype,
    decoder_dtype,
    order_channels_last,
)

REPLAY_CAPACITY = 256


def build_session(
    config: TrainConfig,
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
    *,
    stored: Stored | None = None,
    lists: Path | None = None,
) -> Session:
    """Load, scan, encode and roll out what ``config`` asks for.

    The adapter is made for that of a checkpoint, if ``stored`` has one. The folder ``lists`` gets
    a text file with every image, and one with every video.

    Raises ModelError, DataError, PromptError, LoraError or ValueError, each saying what to change.
    """
    device = accelerator.device

    def before(sources: Sources) -> None:
        begin_clips(config, sources, accelerator, log, progress)

    sources = open_sources(config, device, log, progress, lists, encode=True, before=before)
    if sources.model.fixed_why:
        log(sources.model.fixed_why)
    config = fitted(config, sources.model)
    student = build_student(config, sources.model, device, log, stored)
    motions, prompts = load_motions(config, student, sources, accelerator, log, progress, lists)
    parts = build_parts(config, student, device)
    if config.recipe.adversarial.caption_weight and parts.features is not None and not stored:
        log(caption_loss(parts.features, parts.reader))
    optimizer, judging = build_optimizers(config, parts)
    compared = config.aims_at_ends and config.recipe.adversarial.content_weight
    whole = parts.decoder.part(*sources.size[1:]) == sources.size[1:]
    ends = None
    if compared and whole and parts.features is not None:
        ends = EndMaps(motions.clean, sources.frames, parts.decoder, parts.features, device)
    return Session(
        accelerator=accelerator,
        parts=parts,
        sources=sources,
        prompts=prompts,
        motions=motions,
        frames=real_frames(sources, motions, parts.decoder, device, prompts),
        end_maps=ends,
        replay=Replay(REPLAY_CAPACITY, sources.latent_shape),
        memory=new_memory(config),
        optimizer=optimizer,
        discriminator_optimizer=judging,
        ema=ParameterEma(
            parts.parameters, config.optim.ema_decay, "cpu" if config.optim.offload else None
        ),
    )


def begin_clips(
    config: TrainConfig,
    sources: Sources,
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
) -> None:
    """Have the beginnings of all clips of a run made, where another model makes them."""
    model, prompts = sources.model, sources.prompts
    if model.noise.in_noise:
        return
    progress(STARTS, 0, 0)
    recipe = Recipe.of(config, model, sources.latent_shape).lead
    if recipe is None or model.other is None:
        return
    clips = [plan_clips(prompts, config.data.library_clips)]
    if config.preview.every:
        clips.append(preview_clips(preview_prompts(config, prompts), config.seed))
    make_starts(config, recipe, model.other, clips, accelerator, log, progress)


def new_memory(config: TrainConfig) -> LossMemory:
    return LossMemory(ratio=GradientRatio(config.recipe.adversarial.ratio))


def caption_loss(features: FeatureNetwork, reader: ClipReader | None) -> str:
    """A log line on what measures captions in this run, or on what it means that nothing does."""
    if features.reads:
        return f"Caption loss: uses the feature network {features.name}."
    return (
        OFF
        if reader is None
        else f"Caption loss: uses CLIP scores of frames at {reader.side} pixels."
    )


def build_student(
    config: TrainConfig,
    model: VideoModel,
    device: torch.device,
    log: Log,
    stored: Stored | None = None,
) -> Student:
    """``model`` on ``device`` in its precision, with the adapter in its network, that of the
    checkpoint ``stored`` if given; changes ``model``.

    Text encoder and autoencoder, and the blocks to swap, stay in main memory if the settings say so
    and ``device`` has a memory of its own.
    """
    hardware = config.hardware
    model.resting = hardware.offload_idle and device.type not in ("cpu", "mps")
    swapped = swapped_blocks(model.network, model.family.blocks, hardware.blocks_to_swap)
    swap = BlockSwap(swapped, model.family.exact) if swapped and device.type == "cuda" else None
    model.to(device, base_dtype(hardware.precision, device))
    add_adapter(config, model, log, stored)
    network, kinds = model.network.to(device), model.family.blocks
    if model.dtype != torch.float32:
        compute_lora_in_input_dtype(network)
    # TemporalConvLayer has dropout: student, target and generated passes run without it.
    network.eval()
    if hardware.channels_last:
        order_channels_last(network)
    if swap is not None:
        swap.start(device)
        log(
            f"{len(swapped)} of the base model's blocks are kept in the computer's RAM and copied "
            "to the card when it is their turn."
        )
    if hardware.compile:
        compile_blocks(network, kinds, ContentCache(config.data.cache).root / "compiled")
    if hardware.gradient_checkpointing:
        enable_checkpointing(network, kinds)
    return Student(model)


def build_parts(config: TrainConfig, student: Student, device: torch.device) -> StepParts:
    """The networks of a step around ``student``; what the settings leave out is None."""
    model, hardware, options = student.model, config.hardware, config.recipe.adversarial
    features = reader = discriminator = None
    if options.weight:
        features = build_features(options.features, model.feature_network).to(device)
        if options.caption_weight:
            found = build_reader(options.clip, features, model.dtype)
            reader = None if found is None else found.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = Discriminator(features.channels, model.text.width).to(device)
    return StepParts(
        config=config,
        student=student,
        decoder=model.codec.for_training(
            device,
            decoder_dtype(hardware.decode_precision, device),
            hardware.gradient_checkpointing,
            model.resting,
        ),
        representation=build_representation(
            config.recipe.motion.representation,
            model.codec.channels,
            lead=model.codec.lead,
            seed=config.seed,
        ).to(device),
        features=features,
        reader=reader,
        discriminator=discriminator,
    )


def build_optimizers(
    config: TrainConfig, parts: StepParts
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """Of student and motion head, and of the discriminator where there is one."""
    groups: list[dict] = [{"params": parts.parameters, "lr": config.optim.lr}]
    head = parts.representation.parameters()
    if head:
        groups.append({"params": head, "lr": config.recipe.motion.head_lr})
    optimizer = build_optimizer(config.optim, groups)
    if parts.discriminator is None:
        return optimizer, None
    judged, lr = parts.discriminator.parameters(), config.recipe.adversarial.lr
    return optimizer, torch.optim.AdamW(judged, lr=lr, betas=(0.0, 0.99), weight_decay=0.0)
