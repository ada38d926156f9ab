"""Everything a run is made of, built from its config.

Model, adapter, data, discriminator, optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..adversarial.features import FeatureNetwork, build_features
from ..adversarial.heads import Discriminator
from ..adversarial.losses import GradientRatio
from ..config import TrainConfig
from ..data.cache import ContentCache
from ..data.images import ImageSet, scan_images
from ..data.videos import VideoSet, scan_videos
from ..families import VideoModel, load_model
from ..lora.adapter import add_lora, load_lora_state, lora_parameters
from ..lora.formats import read_lora
from ..motion.learned import MotionRepresentation, build_representation
from .checkpointing import enable_checkpointing
from .draws import generator_for
from .ema import ParameterEma
from .frames import ClipFrames, RealFrames, StyleFrames
from .motions import EncodedVideos, MotionSource, Replay, TrajectoryLibrary, roll_out
from .prompts import Prompt, PromptSet, build_prompts
from .student import Student

LIBRARY_VERSION = 1
REPLAY_CAPACITY = 256

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called as ``(what, done, total)`` by the long parts of the set-up."""


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
    model = load_model(config.model)
    height, width = config.data.height or model.height, config.data.width or model.width
    shape = model.latent_shape(config.data.frames or model.frames, height, width)
    if config.adversarial.weight and config.images is None:
        log("No image folder: frames of the motion source stand in for style images.")
    images = _scan_images(config, model, height, width, log)
    captions = [] if images is None else [record.caption for record in images.records]
    prompts = build_prompts(config.prompts, model.path / "prompts.txt", captions, config.trigger)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    model.to(accelerator.device, dtype)
    add_lora(model.unet, config.lora.rank, config.lora.alpha, config.lora.dropout, config.seed)
    _initial_lora(config, model, log)
    # TemporalConvLayer has dropout: student, target and generated passes run without it.
    model.unet.eval()
    if config.hardware.gradient_checkpointing:
        enable_checkpointing(model.unet)
    student = Student(model, config.trajectory.timestep_scaling, config.trajectory.sigma_data)
    motions, prompts = _motions(config, student, prompts, shape, (height, width), log, progress)
    parts = _trainables(config, model, accelerator.device)
    return Session(
        config=config,
        accelerator=accelerator,
        student=student,
        prompts=prompts,
        motions=motions,
        frames=_real_frames(images, motions, model, prompts),
        replay=Replay(REPLAY_CAPACITY, shape),
        ratio=GradientRatio(config.adversarial.ratio, config.adversarial.ratio_ema),
        ema=ParameterEma(lora_parameters(model.unet), config.optim.ema_decay),
        latent_shape=shape,
        height=height,
        width=width,
        fps=config.data.fps or model.fps,
        **parts,
    )


def _initial_lora(config: TrainConfig, model: VideoModel, log: Log) -> None:
    """The user's LoRA, else the base model's warm start where its rank fits, else untouched "
    "layers."""
    warm = model.path / "warm_start.safetensors"
    if config.init_lora is not None:
        load_lora_state(model.unet, read_lora(config.init_lora, model.unet).pairs)
        log(f"Continues from {config.init_lora}.")
    elif config.warm_start and warm.is_file():
        found = read_lora(warm, model.unet)
        ranks = {pair.rank for pair in found.pairs.values()}
        if ranks == {config.lora.rank}:
            load_lora_state(model.unet, found.pairs)
            log("Starts from the base model's own few-step LoRA (warm start).")
        else:
            log(f"No warm start: it has rank {sorted(ranks)}, this run {config.lora.rank}.")


def _scan_images(
    config: TrainConfig, model: VideoModel, height: int, width: int, log: Log
) -> ImageSet | None:
    if config.images is None:
        return None
    folder = scan_images(
        config.images,
        min_side=config.data.min_side,
        trigger=config.trigger,
        prompt_template=config.prompt_template,
        count_tokens=model.count_tokens,
        max_tokens=model.max_tokens,
    )
    log(folder.report())
    return ImageSet(folder, height, width, crop=config.data.crop)


def _real_frames(
    images: ImageSet | None, motions: MotionSource, model: VideoModel, prompts: PromptSet
) -> RealFrames:
    if images is not None:
        return StyleFrames(images)
    clean = motions.states[:, 0] if isinstance(motions, TrajectoryLibrary) else motions.latents  # type: ignore[attr-defined]
    return ClipFrames(model, clean, prompts.frames(motions.prompts.tolist()))


def _trainables(config: TrainConfig, model: VideoModel, device: torch.device) -> dict:
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


def _optimizer(config: TrainConfig, groups: list[dict]) -> torch.optim.Optimizer:
    options = {"betas": config.optim.betas, "weight_decay": config.optim.weight_decay}
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


def _motions(
    config: TrainConfig,
    student: Student,
    prompts: PromptSet,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    log: Log,
    progress: Progress,
) -> tuple[MotionSource, PromptSet]:
    if config.videos is None:
        return _library(config, student, prompts, shape, log, progress), prompts
    return _videos(config, student, prompts, shape, size, log, progress)


def _library(
    config: TrainConfig,
    student: Student,
    prompts: PromptSet,
    shape: tuple[int, int, int, int],
    log: Log,
    progress: Progress,
) -> TrajectoryLibrary:
    """The teacher's rollouts for this model, prompt set and guidance.

    From the cache, or made now and kept.
    """
    count, guidance = config.data.library_clips, config.data.library_guidance
    steps = config.trajectory.ddim_timesteps
    rows = torch.randint(len(prompts), (count,), generator=generator_for(0, count, stream=1))
    if len(prompts) <= count:
        rows = torch.arange(count) % len(prompts)
    cache = ContentCache(config.data.cache)
    parts = (student.model.base_hash, prompts.hash, str(shape), count, guidance, steps)

    def compute() -> dict[str, Tensor]:
        log(f"The teacher rolls out {count} clips in {steps} steps, once for every later style.")
        library = roll_out(
            student,
            [p.text for p in prompts.prompts],
            rows,
            shape,
            guidance=guidance,
            seed=0,
            steps=steps,
            progress=lambda done: progress("trajectory library", done, count),
        )
        return {"states": library.states, "prompts": library.prompts}

    stored = cache.fetch(cache.key("library", LIBRARY_VERSION, *parts), compute)
    return TrajectoryLibrary(stored["states"], stored["prompts"])


@torch.no_grad()
def _videos(
    config: TrainConfig,
    student: Student,
    prompts: PromptSet,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    log: Log,
    progress: Progress,
) -> tuple[EncodedVideos, PromptSet]:
    """Clips of the user's videos, encoded once.

    Their captions join the prompts (empty ones stay empty).
    """
    model = student.model
    frames, fps = shape[1], config.data.fps or model.fps
    folder = scan_videos(
        config.videos or "",
        frames=frames,
        fps=fps,
        min_side=config.data.min_side,
        trigger=config.trigger,
        prompt_template=config.prompt_template,
        count_tokens=model.count_tokens,
        max_tokens=model.max_tokens,
    )
    log(folder.report())
    videos = VideoSet(folder, frames, fps, *size)
    rng = np.random.default_rng(config.seed)
    latents: list[Tensor] = []
    known = {p.text: i for i, p in enumerate(prompts.prompts)}
    added: list[Prompt] = []
    rows: list[int] = []
    for done in range(config.data.library_clips):
        clip, captions = videos.batch(1, rng)
        latents.append(model.encode_clips(clip.to(model.device)).half().cpu())
        if captions[0] not in known:
            known[captions[0]] = len(prompts) + len(added)
            added.append(Prompt(captions[0], captions[0]))
        rows.append(known[captions[0]])
        progress("encoding video", done + 1, config.data.library_clips)
    prompts = PromptSet(prompts.prompts + tuple(added), prompts.conditional)
    return EncodedVideos(torch.cat(latents), torch.tensor(rows), model.schedule), prompts
