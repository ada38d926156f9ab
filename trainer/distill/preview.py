"""Previews of a run.

Teacher beside student at each number of steps, and how much of the motion is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluate.flow import clip_flow
from ..evaluate.generate import generate_clips
from ..evaluate.truth import as_frames
from ..media import write_clip
from ..sheets import Row, contact_sheet, grid
from .session import Session

MOTION_ALARM = 0.5
"""A student whose flow magnitude falls under this part of the teacher's is losing its motion."""


@dataclass(frozen=True)
class Preview:
    """Files of one preview and the student's flow magnitude over the teacher's by number of "
    "steps."""

    folder: Path
    motion_kept: dict[int, float]

    @property
    def alarm(self) -> str | None:
        """A sentence when motion dies; None while it lives."""
        low = {steps: kept for steps, kept in self.motion_kept.items() if kept < MOTION_ALARM}
        if not low:
            return None
        shown = ", ".join(f"{kept:.0%} at {steps} steps" for steps, kept in low.items())
        return (
            f"Motion is dying: {shown} of the teacher's. Lower `adversarial.ratio` or raise "
            "`motion.weight`, "
            "and use an earlier checkpoint."
        )


class Previewer:
    """Samples fixed prompts with fixed seeds; the teacher's clips are made once and kept."""

    def __init__(self, session: Session, prompts: Sequence[str], guidance_scale: float):
        self.session, self.prompts = session, list(prompts)
        self.guidance_scale = guidance_scale
        self._teacher: np.ndarray | None = None

    def make(self, folder: Path) -> Preview:
        """Sample the averaged adapter at every number of steps and write clips, grid and poster to
        ``folder``.
        """
        s = self.session
        folder.mkdir(parents=True, exist_ok=True)
        clips: dict[str, np.ndarray] = {
            f"teacher, {s.config.preview.teacher_steps} steps": self.teacher()
        }
        kept: dict[int, float] = {}
        for steps in s.config.preview.steps:
            with s.ema.applied():
                frames = self._sample(steps)
            clips[f"student, {steps} step{'s' if steps > 1 else ''}"] = frames
            kept[steps] = _flow_ratio(frames, self.teacher())
            for index, clip in enumerate(frames):
                name = f"prompt-{index + 1}-steps-{steps}"
                write_clip(clip, folder / f"{name}.mp4", s.fps, scale=enlargement(s.width))
        write_grid(self.prompts, clips, folder / "grid", s.fps)
        return Preview(folder, kept)

    def teacher(self) -> np.ndarray:
        """The teacher's clips (N, F, H, W, 3) uint8 at the preview's number of steps, guided."""
        if self._teacher is None:
            steps = self.session.config.preview.teacher_steps
            self._teacher = self._clips(
                "ddim", steps, lora=False, guidance_scale=self.guidance_scale
            )
        return self._teacher

    def _sample(self, steps: int) -> np.ndarray:
        trajectory = self.session.config.trajectory
        return self._clips(
            "lcm",
            steps,
            timestep_scaling=trajectory.timestep_scaling,
            original_steps=trajectory.ddim_timesteps,
        )

    def _clips(self, sampler: str, steps: int, **options: Any) -> np.ndarray:
        s = self.session
        size = (s.latent_shape[1], s.height, s.width)
        with s.accelerator.autocast():
            clips = generate_clips(
                s.model,
                self.prompts,
                sampler=sampler,
                steps=steps,
                seed=s.config.seed,
                size=size,
                **options,
            )
        return as_frames(clips)


def write_grid(prompts: Sequence[str], clips: dict[str, np.ndarray], path: Path, fps: int) -> None:
    """``path``.webp (moving) and ``path``.png (film strips): a row for each prompt, a column for
    each method.

    ``clips`` holds uint8 (N, F, H, W, 3) by label, one clip a prompt.
    """
    rows: list[Row] = [
        (prompt, [(label, frames[index]) for label, frames in clips.items()])
        for index, prompt in enumerate(prompts)
    ]
    write_clip(grid(rows), path.with_suffix(".webp"), fps)
    contact_sheet(rows).save(path.with_suffix(".png"))


def enlargement(width: int) -> int:
    """Whole factor that brings small clips to about 256 pixels."""
    return max(1, 256 // width)


def _flow_ratio(frames: np.ndarray, teacher: np.ndarray) -> float:
    ours, theirs = (float(clip_flow(clips).magnitude.mean()) for clips in (frames, teacher))
    return ours / max(theirs, 1e-6)
