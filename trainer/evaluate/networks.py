"""Measuring networks: features of frames and clips, with the network's name and hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..adversarial.features import build_features, weights_hash
from ..mini.reading import open_judge

BATCH = 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measuring:
    """A feature network ``name`` with the sha256 ``hash`` of its weights.

    ``frame_features`` maps (N, 3, H, W) in [-1, 1] to (N, D), ``video_features`` (B, 3, F, H, W) to
    (B, E). Without the latter a clip's features are those of its frames averaged over time, and the
    average size of the change between neighbouring frames: a plain "Frechet-<net>", not FVD.
    ``hits`` maps clips and their captions of the mini world to (B,) by attribute: the share of what
    is said that is shown, NaN where nothing is said. ``similarity`` maps clips and their prompts to
    (B,) of CLIPSIM. Each is None where nothing can. ``also`` names the further networks with their
    hashes.
    """

    name: str
    hash: str
    frame_features: Callable[[Tensor], Tensor]
    video_features: Callable[[Tensor], Tensor] | None = None
    hits: Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]] | None = None
    similarity: Callable[[Tensor, Sequence[str]], np.ndarray] | None = None
    also: tuple[tuple[str, str], ...] = ()
    device: torch.device = CPU
    """Where the networks are; clips and images may lie elsewhere."""

    def features(self, clips: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Frame features (B, F, D) and clip features (B, E) of ``clips`` (B, 3, F, H, W)."""
        flat = self.images(clips.transpose(1, 2).flatten(0, 1))
        frames = flat.reshape(clips.shape[0], clips.shape[2], -1)
        if self.video_features is None:
            change = np.abs(np.diff(frames, axis=1)).mean(axis=1)
            return frames, np.concatenate((frames.mean(axis=1), change), axis=1)
        return frames, _in_batches(self.video_features, clips, self.device)

    def images(self, pixels: Tensor) -> np.ndarray:
        """Features (N, D) of ``pixels`` (N, 3, H, W)."""
        return _in_batches(self.frame_features, pixels, self.device)


@torch.no_grad()
def _in_batches(
    network: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device
) -> np.ndarray:
    parts = [network(part.to(device)).float().cpu() for part in inputs.split(BATCH)]
    return torch.cat(parts).numpy()


def judge_network(folder: Path, device: torch.device = CPU) -> Measuring:
    """The judge in ``folder``, which no training uses. Other sizes are brought to its own."""
    judge = open_judge(folder)
    seen = weights_hash(judge)
    judge.to(device)

    def fitted(pixels: Tensor) -> Tensor:
        if pixels.shape[-2:] == (judge.side, judge.side):
            return pixels
        size = (judge.side, judge.side)
        return F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(-1, 1)

    def clips(pixels: Tensor) -> Tensor:
        frames = fitted(pixels.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)

    return Measuring(
        "mini-judge",
        seen,
        lambda pixels: judge.frame_features(fitted(pixels)),
        lambda pixels: judge.video_features(clips(pixels)),
        lambda pixels, captions: judge.hits(clips(pixels), captions),
        device=device,
    )


def feature_network(
    name: str, own: Path | None, path: Path | None = None, device: torch.device = CPU
) -> Measuring:
    """A frozen image network as a measure, for models without a judge that reads captions.

    A frame's features are the network's four maps, each averaged over places. ``name``,
    ``own`` and errors as ``trainer.adversarial.features.build_features``.
    """
    network = build_features(name, own, path).to(device)

    def frame_features(pixels: Tensor) -> Tensor:
        return torch.cat([level.mean(dim=(2, 3)) for level in network(pixels)], dim=1)

    return Measuring(network.name, network.hash, frame_features, device=device)
