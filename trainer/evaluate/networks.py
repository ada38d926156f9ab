"""The networks that measure: features of frames and clips, and the name and hash they go by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..adversarial.features import build_features, weights_hash
from ..mini.judge import Judge, load_judge

BATCH = 32


@dataclass(frozen=True)
class Measuring:
    """A feature network ``name`` with the sha256 ``hash`` of its weights.

    ``frame_features`` maps (N, 3, H, W) in [-1, 1] to (N, D), ``video_features`` (B, 3, F, H, W) to
    (B, E). ``judge`` reads captions; it is None where nothing can.
    """

    name: str
    hash: str
    frame_features: Callable[[Tensor], Tensor]
    video_features: Callable[[Tensor], Tensor]
    judge: Judge | None = None

    @torch.no_grad()
    def frames(self, clips: Tensor) -> np.ndarray:
        """Features (B, F, D) of every frame of ``clips`` (B, 3, F, H, W)."""
        pixels = clips.transpose(1, 2).flatten(0, 1)
        return self.images(pixels).reshape(clips.shape[0], clips.shape[2], -1)

    @torch.no_grad()
    def images(self, pixels: Tensor) -> np.ndarray:
        """Features (N, D) of ``pixels`` (N, 3, H, W)."""
        parts = [self.frame_features(part).float().cpu() for part in pixels.split(BATCH)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def videos(self, clips: Tensor) -> np.ndarray:
        """Features (B, E) of ``clips`` (B, 3, F, H, W)."""
        parts = [self.video_features(part).float().cpu() for part in clips.split(BATCH)]
        return torch.cat(parts).numpy()


def judge_network(folder: Path | None = None) -> Measuring:
    """The mini world's judge, which no training uses. For clips of 64 x 64 pixels."""
    judge = load_judge(folder)
    return Measuring(
        "mini-judge", weights_hash(judge), judge.frame_features, judge.video_features, judge
    )


def feature_network(name: str, model_name: str, path: Path | None = None) -> Measuring:
    """A frozen image network as a measure, for models whose captions no judge can read.

    A frame's features are its four maps averaged over places. A clip's are the average over time
    and the average size of the change between neighbouring frames: a plain "Frechet-<net>", not
    FVD. ``name`` and errors as ``trainer.adversarial.features.build_features``.
    """
    network = build_features(name, model_name, path)

    def frame_features(pixels: Tensor) -> Tensor:
        return torch.cat([level.mean(dim=(2, 3)) for level in network(pixels)], dim=1)

    def video_features(clips: Tensor) -> Tensor:
        flat = frame_features(clips.transpose(1, 2).flatten(0, 1))
        frames = flat.unflatten(0, (clips.shape[0], -1))
        return torch.cat((frames.mean(dim=1), frames.diff(dim=1).abs().mean(dim=1)), dim=1)

    return Measuring(network.name, network.hash, frame_features, video_features)
