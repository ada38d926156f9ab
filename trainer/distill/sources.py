"""What a run learns from: its images, its motion source, and the LoRA it starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..adversarial.frames import ClipFrames, RealFrames, StyleFrames
from ..config import TrainConfig
from ..data.cache import ContentCache
from ..data.images import ImageSet, scan_images
from ..data.prompts import Prompt, PromptSet, build_prompts
from ..data.records import MediaFolder
from ..data.videos import VideoSet, scan_videos
from ..families import VideoModel, family_of, load_model, resolve_model
from ..families.codec import VideoCodec
from ..files import atomic_write
from ..lora.adapter import add_lora, start_from
from ..lora.few_step import Start, fit_start
from ..lora.formats import read_lora
from ..lora.whole import add_whole
from ..models.weights import shapes_only
from ..motion.sources import EncodedVideos, MotionSource
from ..runs.checkpoints import load_checkpoint
from ..words import span
from .library import Log, Progress, fetch_library
from .student import Student, base_dtype
from .waits import IMAGES, MODEL, TEXTS, VIDEOS, WEIGHTS

Stored = Mapping[str, Mapping[str, Tensor]]
WHOLE = "whole"
"""Group of a checkpoint with the whole differences that the student has beside its adapter."""


def add_adapter(
    config: TrainConfig, model: VideoModel, log: Log, stored: Stored | None = None
) -> None:
    """Put the LoRA on the network: the user's, else the base model's warm start where its rank
    fits, else untouched layers.

    A LoRA to start from may have any rank; the adapter has the larger of that and ``lora.rank``.
    With ``stored``, the tensors of a checkpoint, it has their ranks and no start of its own.
    """
    if stored is not None:
        ranks = {k.removesuffix(".down"): len(v) for k, v in stored["lora"].items() if "down" in k}
        if config.lora.rank not in ranks.values():
            kept = f"The LoRA keeps the rank of the checkpoint, {span(ranks.values())}"
            log(f"{kept}; `lora.rank`={config.lora.rank} is for new runs.")
        add_lora(model.network, config.lora.rank, float(config.lora.rank), config.seed, ranks=ranks)
        add_whole(model.network, stored.get(WHOLE, {}))
        return
    found = None
    if config.start_from == "auto":
        found = _warm_start(config, model, log)
    elif config.start_from != "none":
        found = _initial_lora(Path(config.start_from).expanduser(), config, model, log)
    rank = config.lora.rank
    ranks = {} if found is None else found.ranks(rank)
    add_lora(model.network, rank, float(rank), config.seed, ranks=ranks)
    if found is not None:
        # An export holds an update that is whole in one place, among its differences.
        complete = found.recorded and not found.differences
        if found.pairs:
            start_from(model.network, found.pairs, complete=complete)
        add_whole(model.network, found.differences)


def stored_adapter(checkpoint: Path | None) -> Stored | None:
    """What the network of a resumed run gets: neither read nor told again what it started from."""
    if checkpoint is None:
        return None
    tensors = load_checkpoint(checkpoint).tensors
    return {name: tensors[name] for name in ("lora", WHOLE) if name in tensors}


def _initial_lora(path: Path, config: TrainConfig, model: VideoModel, log: Log) -> Start:
    found = read_lora(path, model.network)
    start = fit_start(
        found, model.network, model.family, model.name, path.name, model.prediction_type
    )
    log(f"Starts from {path}, {start.told}.{start.remark()}")
    if kept := start.kept_rank(config.lora.rank):
        log(kept)
    return start


def _warm_start(config: TrainConfig, model: VideoModel, log: Log) -> Start | None:
    warm = model.path / "warm_start.safetensors"
    if not warm.is_file():
        return None
    pairs = read_lora(warm, model.network).pairs
    ranks = {pair.rank for pair in pairs.values()}
    if ranks == {config.lora.rank}:
        log("Starts from the base model's own few-step LoRA (warm start).")
        return Start(pairs, "")
    log(
        f"No warm start: the base model's LoRA has rank {sorted(ranks)}, this run "
        f"{config.lora.rank}."
    )
    return None


@dataclass(frozen=True)
class Sources:
    """What a run reads before it computes: base model, style images (None without a folder), the
    prompts with the images' captions, and the size of its clips in frames and pixels.
    """

    model: VideoModel
    images: ImageSet | None
    prompts: PromptSet
    latent_shape: tuple[int, int, int, int]
    frames: int
    height: int
    width: int
    fps: int

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


def open_sources(
    config: TrainConfig,
    device: torch.device,
    log: Log,
    progress: Progress,
    lists: Path | None = None,
    *,
    encode: bool = False,
    before: Callable[[Sources], None] = lambda sources: None,
) -> Sources:
    """Read model, images and prompts; every image is listed in a file in ``lists``. With
    ``encode``, the states of all prompts and captions are kept in the cache, where the family wants
    that before its network is read, and ``before`` is called just before that. Raises ModelError,
    DataError, PromptError or ValueError.
    """
    progress(MODEL, 0, 0)
    early = encode and family_of(resolve_model(config.model)).texts_first
    with shapes_only() if early else nullcontext():
        model = _read(config, device)
    log(f"Base model {model.name}; licence of its weights: {model.licence}.")
    frames = config.data.frames or model.frames
    height, width = config.data.height or model.height, config.data.width or model.width
    shape = model.latent_shape(frames, height, width)
    images = None
    if config.images is not None:
        progress(IMAGES, 0, 0)
        images = _images(config.images, config, model, (height, width), log, lists)
    elif config.recipe.adversarial.weight:
        log("No image folder: frames from the motion source replace style images.")
    captions = [] if images is None else [record.caption for record in images.records]
    prompts = build_prompts(config.prompts, model.path / "prompts.txt", captions, config.trigger)
    fps = config.data.fps or model.fps
    sources = Sources(model, images, prompts, shape, frames, height, width, fps)
    if not early:
        return sources
    progress(TEXTS, 0, 0)
    encode_prompts(config, sources, device, log)
    before(sources)
    progress(WEIGHTS, 0, 0)
    return replace(sources, model=_read(config, device))


def _read(config: TrainConfig, device: torch.device) -> VideoModel:
    dtype = base_dtype(config.hardware.precision, device)
    model = load_model(config.model, dtype, **config.companions)
    model.text_store = ContentCache(config.data.cache)
    return model


def encode_prompts(config: TrainConfig, sources: Sources, device: torch.device, log: Log) -> None:
    """Keep the states of all that a run says in the cache, while neither main memory nor ``device``
    has the network: the text encoder is too large to lie beside it.
    """
    model, prompts = sources.model, sources.prompts
    texts = ["", model.negative, *config.preview.prompts]
    for prompt in prompts.prompts:
        texts += [prompt.text, prompt.frame, prompt.teacher]
    if sources.images is not None:
        texts += prompts.judged([record.caption for record in sources.images.records])
    log(
        f"The text encoder reads {len(set(texts))} prompts and captions, once; what it makes of "
        "them is kept for every later run."
    )
    model.remember_texts(texts, device)


def _tell(folder: MediaFolder, name: str, log: Log, lists: Path | None) -> None:
    """Log what is in ``folder``, and list every file of it in the folder ``lists``."""
    log(folder.brief())
    if lists is not None:
        file = lists / f"{name}.txt"
        atomic_write(file, folder.report().encode("utf-8"))
        log(f"Every file with its caption: {file}")


def _images(
    path: Path,
    config: TrainConfig,
    model: VideoModel,
    size: tuple[int, int],
    log: Log,
    lists: Path | None,
) -> ImageSet:
    folder = scan_images(
        path,
        min_side=config.data.min_side,
        trigger=config.trigger,
        prompt_template=config.prompt_template,
        background=config.data.background,
        count_tokens=model.text.count,
        max_tokens=model.text.max_tokens,
    )
    _tell(folder, "images", log, lists)
    return ImageSet(folder, *size, crop=config.data.crop)


def real_frames(
    sources: Sources,
    motions: MotionSource,
    decoder: VideoCodec,
    device: torch.device,
    prompts: PromptSet,
) -> RealFrames:
    if sources.images is not None:
        return StyleFrames(sources.images)
    captions = prompts.frames(motions.prompts.tolist())
    return ClipFrames(decoder, device, motions.clean, sources.frames, captions)


def load_motions(
    config: TrainConfig,
    student: Student,
    sources: Sources,
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
    lists: Path | None = None,
) -> tuple[MotionSource, PromptSet]:
    if config.videos is not None:
        return _videos(config.videos, config, sources, log, progress, lists)
    prompts, shape = sources.prompts, sources.latent_shape
    return fetch_library(config, student, prompts, shape, accelerator, log, progress), prompts


@torch.no_grad()
def _videos(
    path: Path,
    config: TrainConfig,
    sources: Sources,
    log: Log,
    progress: Progress,
    lists: Path | None,
) -> tuple[EncodedVideos, PromptSet]:
    """Clips of the user's videos, encoded once.

    Their captions join the prompts (empty ones stay empty).
    """
    model, prompts = sources.model, sources.prompts
    folder = scan_videos(
        path,
        frames=sources.frames,
        fps=sources.fps,
        min_side=config.data.min_side,
        trigger=config.trigger,
        prompt_template=config.prompt_template,
        count_tokens=model.text.count,
        max_tokens=model.text.max_tokens,
    )
    _tell(folder, "videos", log, lists)
    videos = VideoSet(folder, sources.frames, sources.fps, sources.height, sources.width)
    rng = np.random.default_rng(config.seed)
    latents: list[Tensor] = []
    known = {p.text: i for i, p in enumerate(prompts.prompts)}
    added: list[Prompt] = []
    rows: list[int] = []
    with model.awake(model.codec.vae):
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
    return EncodedVideos(torch.cat(latents), torch.tensor(rows), model.noise), prompts
