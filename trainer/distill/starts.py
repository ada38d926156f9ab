"""The states that a model's trajectories begin with, where they do not begin with noise: the ends
of those of another model, which leads.

Both networks are of full size. So the leading one makes all the states first, each is stored, and
it is let go before the other is read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import TrainConfig
from ..data.cache import ContentCache
from ..families import VideoModel, load_model
from ..settings import ConfigError
from .library import Log, Progress, Store, make_shares
from .recipe import Clip, Recipe, beside
from .student import Student, base_dtype

STAGE = "beginnings of the example clips"
SWAP = "hardware.blocks_to_swap"


def preview_clips(prompts: Sequence[str], seed: int) -> list[Clip]:
    """Clips for previews of ``prompts``; their numbers are those of no example clip."""
    return [Clip(prompt, -1 - seed, 0) for prompt in prompts]


def make_starts(
    config: TrainConfig,
    recipe: Recipe,
    path: Path,
    clips: Sequence[list[Clip]],
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
) -> None:
    """Make and store the states that each list of ``clips`` begins with, as ``recipe`` says, by the
    model at ``path``. It is read only if one is missing, and let go in the end.

    Each process makes its share. Raises ConfigError with a folder of videos, whose clips begin
    nowhere, and as `load_model`.
    """
    if config.videos is not None:
        raise ConfigError(
            "`videos` cannot be used with a base model that takes over clips which another one "
            "begins: leave it out. Motion is then learned from the two models' example clips."
        )
    cache, device = ContentCache(config.data.cache), accelerator.device
    dtype = base_dtype(config.hardware.precision, device)
    if not any(missing(cache, recipe, each, dtype) for each in clips):
        return
    log(
        f"{path.name} makes the beginnings of {sum(map(len, clips))} clips in "
        f"{len(recipe.plan.rollout)} sampling steps each, once for all styles. It is in memory "
        "only meanwhile."
    )
    with _leader(config, path, device) as student:
        store = Store(recipe, student, cache, STAGE)
        for each in clips:
            make_shares(store, each, store.read(each), accelerator, progress)


def missing(
    cache: ContentCache, recipe: Recipe, clips: Sequence[Clip], dtype: torch.dtype
) -> list[Clip]:
    """Those of ``clips`` whose beginning is not in ``cache``."""
    return [clip for clip in clips if not cache.path(recipe.key(clip, dtype)).is_file()]


@contextmanager
def _leader(config: TrainConfig, path: Path, device: torch.device) -> Iterator[Student]:
    """The model at ``path`` on ``device``, inside; nothing of it is left afterwards."""
    dtype = base_dtype(config.hardware.precision, device)
    model = load_model(str(path), dtype, **beside(config))
    model.text_store = ContentCache(config.data.cache)
    student = Student(model.placed(device, config.hardware.blocks_to_swap, SWAP))
    try:
        yield student
    finally:
        del student, model
        let_go(device)


def let_go(device: torch.device) -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def preview_starts(
    config: TrainConfig, model: VideoModel, recipe: Recipe, prompts: Sequence[str], seed: int
) -> Tensor | None:
    """The states (N, C, f, h, w) that previews of ``prompts`` begin with; None where they begin
    with noise. What is not stored is made now, while the network of ``model`` makes room.
    """
    lead, path = recipe.lead, model.other
    if lead is None or path is None:
        return None
    clips, cache = preview_clips(prompts, seed), ContentCache(config.data.cache)
    if missing(cache, lead, clips, model.dtype):
        home = model.device
        try:
            if home.type != "cpu":
                model.network.to("cpu")
            with _leader(config, path, home) as student:
                store = Store(lead, student, cache, STAGE)
                store.make(clips, store.read(clips), lambda *_: None)
        finally:
            if home.type != "cpu":
                model.network.to(home)
    own = Store(recipe, Student(model), cache)
    return torch.stack([own.start(clip) for clip in clips])
