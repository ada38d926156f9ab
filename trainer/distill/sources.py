"""What a run learns from: its images, its motion source, and the LoRA it starts with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import TrainConfig
from ..data.images import ImageSet, scan_images
from ..data.videos import VideoSet, scan_videos
from ..families import VideoModel
from ..lora.adapter import add_lora, start_from
from ..lora.few_step import fit_few_step
from ..lora.formats import read_lora
from ..lora.pairs import LoraPair
from .decoding import FrameDecoder
from .frames import ClipFrames, RealFrames, StyleFrames
from .library import Log, Progress, fetch_library
from .motions import EncodedVideos, MotionSource
from .prompts import Prompt, PromptSet
from .student import Student
from .waits import VIDEOS


def add_adapter(config: TrainConfig, model: VideoModel, log: Log) -> None:
    """Put the LoRA on the UNet: the user's, else the base model's warm start where its rank fits,
    else untouched layers.

    A LoRA to start from may have any rank; the adapter has the larger of that and ``lora.rank``.
    """
    found = None
    if config.start_from == "auto":
        found = _warm_start(config, model, log)
    elif config.start_from != "none":
        found = _initial_lora(Path(config.start_from).expanduser(), config, model, log)
    rank = config.lora.rank
    if found is not None:
        rank = max(rank, *(pair.rank for pair in found.values()))
    add_lora(model.unet, rank, float(rank), config.seed)
    if found is not None:
        start_from(model.unet, found)


def _initial_lora(
    path: Path, config: TrainConfig, model: VideoModel, log: Log
) -> dict[str, LoraPair]:
    found = read_lora(path, model.unet)
    names = (model.family.name, model.name, path.name)
    pairs = fit_few_step(found, model.unet, *names, model.prediction_type)
    ranks = sorted({pair.rank for pair in pairs.values()})
    log(f"Continues from {path} (rank {', '.join(map(str, ranks))}).")
    if ranks[-1] > config.lora.rank:
        log(f"The adapter takes its rank {ranks[-1]} in place of `lora.rank`={config.lora.rank}.")
    return pairs


def _warm_start(config: TrainConfig, model: VideoModel, log: Log) -> dict[str, LoraPair] | None:
    warm = model.path / "warm_start.safetensors"
    if not warm.is_file():
        return None
    pairs = read_lora(warm, model.unet).pairs
    ranks = {pair.rank for pair in pairs.values()}
    if ranks == {config.lora.rank}:
        log("Starts from the base model's own few-step LoRA (warm start).")
        return pairs
    log(f"No warm start: it has rank {sorted(ranks)}, this run {config.lora.rank}.")
    return None


def load_images(
    config: TrainConfig, model: VideoModel, height: int, width: int, log: Log
) -> ImageSet | None:
    if config.images is None:
        return None
    folder = scan_images(
        config.images,
        min_side=config.data.min_side,
        trigger=config.trigger,
        prompt_template=config.prompt_template,
        background=config.data.background,
        count_tokens=model.count_tokens,
        max_tokens=model.max_tokens,
    )
    log(folder.report())
    return ImageSet(folder, height, width, crop=config.data.crop)


def real_frames(
    images: ImageSet | None,
    motions: MotionSource,
    decoder: FrameDecoder,
    device: torch.device,
    prompts: PromptSet,
) -> RealFrames:
    if images is not None:
        return StyleFrames(images)
    return ClipFrames(decoder, device, motions.clean, prompts.frames(motions.prompts.tolist()))


def load_motions(
    config: TrainConfig,
    student: Student,
    prompts: PromptSet,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
) -> tuple[MotionSource, PromptSet]:
    if config.videos is None:
        library = fetch_library(config, student, prompts, shape, accelerator, log, progress)
        return library, prompts
    return _videos(config, student, prompts, shape, size, log, progress)


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
    with model.awake(model.vae):
        progress(VIDEOS, 0, config.data.library_clips)
        for done in range(config.data.library_clips):
            clip, captions = videos.batch(1, rng)
            latents.append(model.encode_clips(clip.to(model.device)).half().cpu())
            if captions[0] not in known:
                known[captions[0]] = len(prompts) + len(added)
                added.append(Prompt(captions[0], captions[0], captions[0]))
            rows.append(known[captions[0]])
            progress(VIDEOS, done + 1, config.data.library_clips)
    prompts = replace(prompts, prompts=prompts.prompts + tuple(added))
    return EncodedVideos(torch.cat(latents), torch.tensor(rows), model.schedule), prompts
