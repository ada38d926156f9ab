"""Clips that are made and analysed once, then measured against any number of references."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.videos import VideoSet, scan_videos
from ..families.base import VideoModel
from ..lora.adapter import apply_lora
from ..lora.few_step import fit_few_step
from ..lora.formats import LoraFile, read_lora
from ..lora.pairs import LoraError
from ..lora.recommended import read_recommended
from .generate import generate_clips
from .networks import Measuring
from .rows import Observation, References, measure, observe
from .truth import as_frames, as_pixels, style_pixels

TRUE_CLIPS_PER_PROMPT = 4
"""True clips are cheap, and a large reference set lowers the bias of the Frechet distance."""
SEEDS_PER_RUN = 1_000_000
"""Distance of the noise seeds of two evaluation seeds, so that their clips share no noise."""

Progress = Callable[[str, int, int], None]
"""Called with ``(what, clips done, clips in all)``."""

Starts = Mapping[tuple[str, int], Tensor]

TrueClips = Callable[[Sequence[str], int], np.ndarray]
"""Gives uint8 clips (N, F, H, W, 3) that show N captions, from a seed."""


@dataclass(frozen=True)
class Sight:
    """One set of clips: what was seen in it, and the uint8 clips (N, F, H, W, 3) themselves."""

    label: str
    seen: Observation
    clips: np.ndarray
    seconds_per_clip: float | None = None


@dataclass(frozen=True)
class Bench:
    """What every method is measured with: a model, a network, captions and a seed.

    All methods get the same captions and the same noise, one clip a caption. ``starts`` are the
    states (N, C, f, h, w) that clips begin with, by sampler and steps, where another network makes
    them; steps are then those of both.
    """

    model: VideoModel
    network: Measuring
    captions: list[str]
    seed: int = 0
    batch_size: int | None = None
    progress: Progress | None = None
    starts: Starts = field(default_factory=dict)

    def watch(
        self,
        method: str,
        steps: int,
        sampler: str,
        guidance_scale: float = 1.0,
        *,
        lora: bool = True,
        **sampling: Any,
    ) -> Sight:
        """Generate with the model as it stands, and look. Arguments as `generate_clips`."""
        label = f"{method}, {steps} step{'s' if steps > 1 else ''}"
        tell = self.progress
        if tell is not None:
            tell(label, 0, len(self.captions))
        start = perf_counter()
        clips = generate_clips(
            self.model,
            self.captions,
            sampler=sampler,
            steps=self.model.noise.own_steps(steps),
            guidance_scale=guidance_scale,
            seed=self.seed * SEEDS_PER_RUN,
            starts=self.starts.get((sampler, steps)),
            batch_size=self.batch_size,
            lora=lora,
            progress=None if tell is None else lambda done, total: tell(label, done, total),
            **sampling,
        )
        return self._look(label, clips, round((perf_counter() - start) / len(clips), 4))

    def watch_true(self, label: str, world: TrueClips) -> Sight:
        """Fresh true clips of the captions: the ceiling of accuracies, the floor of distances."""
        clips = world(self.captions, self.seed + SEEDS_PER_RUN)
        return self._look(label, as_pixels(clips))

    def true_videos(self, world: TrueClips) -> np.ndarray:
        """Features (M, E) of true clips, `TRUE_CLIPS_PER_PROMPT` of each caption."""
        many = self.captions * TRUE_CLIPS_PER_PROMPT
        return self.network.features(as_pixels(world(many, self.seed)))[1]

    def real_videos(self, folder: Path) -> np.ndarray:
        """Features (M, E) of clips of the videos in ``folder``, at the model's frames and size: at
        least as many as there are captions.

        Errors as ``trainer.data.videos.VideoSet``.
        """
        model, batch = self.model, 8
        found = scan_videos(folder, frames=model.frames, fps=model.fps)
        videos = VideoSet(found, model.frames, model.fps, model.height, model.width)
        rng = np.random.default_rng(self.seed)
        count = -(-max(len(videos), len(self.captions)) // batch)
        seen = [self.network.features(videos.batch(batch, rng)[0])[1] for _ in range(count)]
        return np.concatenate(seen)

    def style_frames(self, folder: Path) -> np.ndarray:
        """Features (M, D) of the images of a style folder, cropped to the model's frame."""
        return self.network.images(style_pixels(folder, self.model.height, self.model.width))

    def measure(self, seen: Observation, references: References) -> dict[str, Any]:
        """Every measure of what was ``seen``, each with its interval; see `rows.measure`."""
        return measure(seen, references, self.seed)

    def _look(self, label: str, clips: Tensor, seconds: float | None = None) -> Sight:
        if self.progress is not None:
            self.progress(f"measuring {label}", 0, len(clips))
        seen = observe(clips, self.captions, self.network)
        return Sight(label, seen, as_frames(clips), seconds)


def fit_student(model: VideoModel, path: Path) -> LoraFile:
    """The few-step LoRA at ``path``, its pairs by the module paths of ``model``.

    Raises LoraError for a file that is damaged, not a LoRA, or for another model.
    """
    found = read_lora(path, model.network)
    names = (model.family.name, model.name, path.name)
    pairs = fit_few_step(found, model.network, *names, model.prediction_type)
    part = read_recommended(found.metadata, path.name).part
    if part != model.part:
        made, mine = (each or "all noise levels" for each in (part, model.part))
        raise LoraError(
            f"'{path.name}' was trained for {made}, but '{model.name}' is for {mine}. Give each of "
            "the two networks the LoRA that was trained on it."
        )
    return replace(found, pairs=pairs)


@contextmanager
def merged(model: VideoModel, file: LoraFile | None) -> Iterator[dict[str, Any]]:
    """``model`` with the LoRA merged in, inside, in main memory what waits there; gives the sampler
    options it was distilled with.

    Without a file the model stays as it is and the options are empty.
    """
    options = sampling_options(file)
    undo = None
    if file is not None:
        _rest(model)
        undo = apply_lora(model.network, file.pairs, differences=file.differences)
    try:
        yield options
    finally:
        if undo is not None:
            _rest(model)
            undo()


def _rest(model: VideoModel) -> None:
    if model.swap is not None:
        model.swap.rest()


def sampling_options(file: LoraFile | None) -> dict[str, Any]:
    """Sampler options that must be those of the distillation, from the LoRA's own metadata."""
    if file is None:
        return {}
    return read_recommended(file.metadata, file.path.name).sampling


def machine(model: VideoModel) -> dict[str, Any]:
    """What the numbers were made on."""
    device = model.device
    cuda = device.type == "cuda"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
