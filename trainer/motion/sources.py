"""The source of motion: the teacher's own trajectories, or the user's videos.

A DDIM rollout of the teacher is a row of consecutive points ``(z_{t_n+k}, z_{t_n})``: computed
once, it saves the autoencoder and both teacher passes in every later step, and all later styles can
use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.path import NoisePath


class MotionSource(Protocol):
    """Rows of real (or teacher-made) clips, each with its prompt."""

    @property
    def prompts(self) -> Tensor:
        """Prompt row (N,) of every clip."""
        ...

    @property
    def clean(self) -> Tensor:
        """Clean latents (N, C, F, h, w)."""
        ...

    def __len__(self) -> int: ...

    def points(
        self, rows: Tensor, place: Tensor, level: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Points (B, C, f, h, w) of ``rows`` (B,) at the places ``place`` (B,) of the trajectory,
        levels ``level`` (B,); then the teacher's latents one step on, or None if it must be
        computed.
        """
        ...


@dataclass(frozen=True)
class TrajectoryLibrary:
    """Teacher rollouts.

    ``states`` (N, K + 1, C, F, h, w) fp16: the end, then the states at the K ``places`` of the
    trajectory, which ascend to pure noise; ``prompts`` (N,) rows. ``whole``: no place that the
    rollouts visited is missing, so each state leads to the one before it.
    """

    states: Tensor
    prompts: Tensor
    places: tuple[int, ...]
    whole: bool = True

    def __len__(self) -> int:
        return len(self.states)

    @property
    def clean(self) -> Tensor:
        return self.states[:, 0]

    @property
    def noise(self) -> Tensor:
        """The noise (N, C, F, h, w) that the rollouts began with."""
        return self.states[:, -1]

    def points(
        self, rows: Tensor, place: Tensor, level: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Both sides of the step are stored, so neither noise nor the teacher is needed.

        ``place`` must be one of `places`. Where the library is not whole, only the first side is
        there.
        """
        rows = rows.cpu()
        kept = torch.tensor([self.places.index(where) for where in place.tolist()])
        following = self.states[rows, kept].to(noise) if self.whole else None
        return self.states[rows, kept + 1].to(noise), following


@dataclass(frozen=True)
class EncodedVideos:
    """Clips of the user's videos as ``latents`` (N, C, F, h, w) fp16, each with a prompt row."""

    latents: Tensor
    prompts: Tensor
    path: NoisePath

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def clean(self) -> Tensor:
        return self.latents

    def points(
        self, rows: Tensor, place: Tensor, level: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A clip noised to ``level``; the teacher must compute the next step."""
        clean = self.latents[rows.cpu()].to(noise)
        return self.path.add_noise(clean, noise, level), None


class Replay:
    """A ring of the student's own earlier predictions (N, C, F, h, w), each with its prompt row and
    the row ``origins`` of the motion source whose noise it goes back to.

    Part of a checkpoint.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int, int]):
        self.clips = torch.zeros(capacity, *shape, dtype=torch.float16)
        self.prompts = torch.zeros(capacity, dtype=torch.long)
        self.origins = torch.zeros(capacity, dtype=torch.long)
        self.written = 0

    def __len__(self) -> int:
        return min(self.written, len(self.clips))

    def add(self, clips: Tensor, prompts: Tensor, origins: Tensor) -> None:
        """Store ``clips`` (B, C, F, h, w) over the oldest ones.

        A clip that is not finite is left out.
        """
        for clip, prompt, origin in zip(clips.detach().half().cpu(), prompts, origins, strict=True):
            if clip.isfinite().all():
                place = self.written % len(self.clips)
                self.clips[place], self.prompts[place], self.origins[place] = clip, prompt, origin
                self.written += 1

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, C, F, h, w) in fp32, prompt rows (B,) and origins (B,) of ``rows`` (B,)."""
        return self.clips[rows].float(), self.prompts[rows], self.origins[rows]

    def state_dict(self) -> dict[str, Tensor]:
        written = torch.tensor(self.written)
        stored = {"clips": self.clips, "prompts": self.prompts, "origins": self.origins}
        return {**stored, "written": written}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["clips"].shape != self.clips.shape or "origins" not in state:
            raise ValueError(
                f"The stored predictions have the shape {tuple(state['clips'].shape)} or were "
                f"written by an older version; this run needs {tuple(self.clips.shape)} with "
                "origins. Resume with the run's own config and version, or start a new run."
            )
        self.clips.copy_(state["clips"])
        self.prompts.copy_(state["prompts"])
        self.origins.copy_(state["origins"])
        self.written = int(state["written"])
