"""Previews of a run: teacher beside student at each number of steps, and the motion left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..adversarial.frames import StyleFrames
from ..config import TrainConfig
from ..data.cache import ContentCache
from ..data.prompts import PromptSet
from ..evaluate.closeness import (
    ConstantsLeft,
    ContentKept,
    Look,
    StyleReach,
    judge_look,
    network_look,
)
from ..evaluate.flow import Flow, clip_flow
from ..evaluate.generate import decode_states, generate_clips
from ..evaluate.truth import as_frames
from ..files import atomic_write
from ..lora.adapter import adapter_at
from ..media import write_clip
from ..sheets import Row, contact_sheet, grid
from .batch import Session
from .draws import generator_for
from .originals import Originals
from .recipe import Recipe
from .sources import Sources
from .starts import preview_starts

MOTION_ALARM = 0.5
"""Below this fraction of the teacher's flow magnitude, the student moves too little."""
MEASURES = (
    "motion_kept", "motion_agrees", "style_reached", "content_kept", "constants_left",
)  # fmt: skip
"""What a preview measures at each number of steps."""
STRENGTH_STEPS = 4
STYLE_IMAGES = 64
"""At most so many style images, spread over the folder, are compared with."""


@dataclass(frozen=True)
class Preview:
    """Files of one preview, and by number of steps: the student's flow magnitude over the
    teacher's, and how far both move the same way (`Flow.agreement`); and where there is a style,
    how much of the way to it the student has come, how much of the teacher's content it shows, and
    how much is left of what all of the teacher's clips have in common, such as a stamp.
    """

    folder: Path
    motion_kept: dict[int, float]
    motion_agrees: dict[int, float] = field(default_factory=dict)
    style_reached: dict[int, float] = field(default_factory=dict)
    content_kept: dict[int, float] = field(default_factory=dict)
    constants_left: dict[int, float] = field(default_factory=dict)

    def event(self) -> dict[str, Any]:
        """The fields of a "preview" event, rounded, with the steps as words."""
        return {
            name: {str(steps): round(value, 4) for steps, value in getattr(self, name).items()}
            for name in MEASURES
        }

    @property
    def alarm(self) -> str | None:
        """A warning if there is too little movement; else None."""
        low = {steps: kept for steps, kept in self.motion_kept.items() if kept < MOTION_ALARM}
        if not low:
            return None
        shown = ", ".join(
            f"{kept:.0%} of the original at {steps} step{'s' if steps > 1 else ''}"
            for steps, kept in low.items()
        )
        return (
            f"Too little movement: {shown}. Earlier checkpoints may move more; a lower "
            "`adversarial.ratio` keeps more movement and learns less style."
        )


class Sampled(Protocol):
    """What a preview is made with: a training session, or a model with a stored adapter."""

    ema: Any
    sources: Sources

    @property
    def config(self) -> TrainConfig: ...

    @property
    def model(self) -> Any: ...


class Previewer:
    """Samples fixed prompts with fixed seeds; the teacher's clips are `Originals`.

    ``style`` (see `style_of`) adds how much of the way to the style images is done.
    """

    def __init__(
        self,
        session: Sampled,
        prompts: Sequence[str],
        seed: int | None = None,
        style: tuple[Look, Tensor] | None = None,
    ):
        self.session, self.prompts = session, list(prompts)
        self.recipe = Recipe.of(session.config, session.model, session.sources.latent_shape)
        self.seed = session.config.seed if seed is None else seed
        self._teacher: np.ndarray | None = None
        self._begun: Tensor | None = None
        self._style = style
        self._between: Callable[[], None] = lambda: None
        self._flow: Flow | None = None
        self._compared: dict[str, Callable[[np.ndarray], float | None]] | None = None

    def make(
        self, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Preview:
        """Sample the averaged adapter at every number of steps and write clips, grid and poster to
        ``folder``; ``progress`` receives the number of finished columns and of all, and may raise.
        """
        s = self.session
        total = 1 + len(s.config.preview.steps)
        self._between = partial(progress, 0, total)
        self._between()
        folder.mkdir(parents=True, exist_ok=True)
        clips: dict[str, np.ndarray] = {
            f"teacher, {s.config.preview.teacher_steps} steps": self.teacher()
        }
        self._write(self.teacher(), folder, "teacher")
        found: dict[str, dict[int, float]] = {name: {} for name in MEASURES}
        for done, steps in enumerate(s.config.preview.steps, 1):
            self._between = partial(progress, done, total)
            self._between()
            with s.ema.applied():
                frames = self._sample(steps)
            clips[f"student, {steps} step{'s' if steps > 1 else ''}"] = frames
            for name, value in self._measured(frames).items():
                if value is not None:
                    found[name][steps] = value
            self._write(frames, folder, f"steps-{steps}")
        self._finish(folder, clips)
        progress(total, total)
        self._between = lambda: None
        return Preview(folder, **found)

    def make_strengths(self, folder: Path, strengths: Sequence[float]) -> Preview:
        """The prompts at each strength of the averaged adapter, in `STRENGTH_STEPS` steps."""
        s = self.session
        folder.mkdir(parents=True, exist_ok=True)
        clips: dict[str, np.ndarray] = {}
        for strength in strengths:
            with s.ema.applied(), adapter_at(s.model.network, strength):
                frames = self._sample(STRENGTH_STEPS)
            clips[f"strength {strength:g}"] = frames
            self._write(frames, folder, f"strength-{round(100 * strength)}")
        self._finish(folder, clips)
        return Preview(folder, {})

    def _finish(self, folder: Path, clips: dict[str, np.ndarray]) -> None:
        write_grid(self.prompts, clips, folder / "grid", self.session.sources.fps)
        prompts = json.dumps(self.prompts, ensure_ascii=False)
        atomic_write(folder / "prompts.json", prompts.encode("utf-8"))

    def _write(self, frames: np.ndarray, folder: Path, label: str) -> None:
        """``prompt-<n>-<label>.mp4`` for every prompt."""
        s = self.session
        for index, clip in enumerate(frames):
            path = folder / f"prompt-{index + 1}-{label}.mp4"
            write_clip(clip, path, s.sources.fps, scale=enlargement(s.sources.width))

    def _measured(self, frames: np.ndarray) -> dict[str, float | None]:
        """The `MEASURES` of the student's clips; what cannot be measured is None or left out."""
        if self._flow is None:
            self._flow = clip_flow(self.teacher())
        flow, magnitude = clip_flow(frames), float(self._flow.magnitude.mean())
        found: dict[str, float | None] = {
            "motion_kept": float(flow.magnitude.mean()) / max(magnitude, 1e-6),
            "motion_agrees": float(flow.agreement(self._flow).mean()),
        }
        if self._style is None:
            return found
        if self._compared is None:
            look, images = self._style
            self._compared = {
                "style_reached": StyleReach(look, images, self.teacher()),
                "content_kept": ContentKept(look, self.teacher()),
                "constants_left": ConstantsLeft(self.teacher()),
            }
        return found | {name: measure(frames) for name, measure in self._compared.items()}

    def teacher(self) -> np.ndarray:
        """The teacher's clips (N, F, H, W, 3) uint8 at the preview's number of steps, guided."""
        if self._teacher is None:
            s = self.session
            steps, size = s.config.preview.teacher_steps, s.sources.size
            originals = Originals(self.recipe, self.prompts, self.seed, steps, size)
            cache = ContentCache(s.config.data.cache)
            states = originals.fetch(cache, self._starts(), self._between)
            self._teacher = as_frames(decode_states(s.model, states, self.prompts, quick=True))
        return self._teacher

    def _sample(self, steps: int) -> np.ndarray:
        s = self.session
        clips = generate_clips(
            s.model, self.prompts, steps=steps, seed=self.seed, size=s.sources.size,
            starts=self._starts(), between=self._between, quick=True,
            original_steps=self.recipe.plan.places,
        )  # fmt: skip
        return as_frames(clips)

    def _starts(self) -> Tensor | None:
        """What clips begin with, where that is not noise."""
        s = self.session
        if self._begun is None and not s.model.noise.in_noise:
            self._begun = preview_starts(s.config, s.model, self.recipe, self.prompts, self.seed)
        return self._begun


def preview_prompts(config: TrainConfig, prompts: PromptSet) -> list[str]:
    """The config's preview prompts, or a fixed draw from the run's own ``prompts``."""
    wanted = config.preview
    if wanted.prompts:
        return list(wanted.prompts)[: wanted.count]
    order = torch.randperm(len(prompts), generator=generator_for(0, 0, stream=2))
    return prompts.texts(order[: wanted.count].tolist())


def style_of(session: Session) -> tuple[Look, Tensor] | None:
    """What `Previewer` compares a run's look with; None without style images or a network."""
    if not isinstance(session.frames, StyleFrames):
        return None
    if session.model.judge is not None:
        look = judge_look(session.model.judge)
    elif session.parts.features is not None:
        look = network_look(session.parts.features)
    else:
        return None
    images = session.frames.images
    spread = np.linspace(0, len(images) - 1, min(len(images), STYLE_IMAGES)).round()
    rng = np.random.default_rng(0)  # places random crops
    return look, images.batch([int(index) for index in spread], rng)[0]


def write_grid(
    prompts: Sequence[str],
    clips: dict[str, np.ndarray],
    path: Path,
    fps: int,
    scale: int | None = None,
    strip: int | None = None,
) -> None:
    """``path``.webp (moving) and ``path``.png (film strips): a row for each prompt, a column for
    each method.

    ``clips`` holds uint8 (N, F, H, W, 3) by label, one clip per prompt. ``scale`` enlarges the
    moving ones, ``strip`` is the number of frames in a film strip; both as in `sheets` if None.
    """
    rows: list[Row] = [
        (prompt, [(label, frames[index]) for label, frames in clips.items()])
        for index, prompt in enumerate(prompts)
    ]
    write_clip(grid(rows, scale=scale), path.with_suffix(".webp"), fps)
    contact_sheet(rows, max_frames=strip).save(path.with_suffix(".png"))


def enlargement(width: int) -> int:
    """Whole factor that brings small clips to about 256 pixels."""
    return max(1, 256 // width)
