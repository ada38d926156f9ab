"""How far few clips have come from the teacher's look to that of the style images.

A preview has two or three clips: too few for a distance between distributions. What is left is the
mean distance of their frames to the nearest style image, beside the same for the teacher's clips.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..adversarial.features import FeatureNetwork
from ..mini.judge import load_judge
from .networks import BATCH

JUDGE_PIXELS = 64

Look = Callable[[Tensor], Tensor]
"""Features (N, D) of pixels (N, 3, H, W) in [-1, 1]."""


def judge_look() -> Look:
    """Features of the mini world's judge, which no training uses; any size is brought to 64."""
    judge = load_judge()
    size = (JUDGE_PIXELS, JUDGE_PIXELS)

    def look(pixels: Tensor) -> Tensor:
        return judge.frame_features(F.interpolate(pixels, size, mode="bilinear", antialias=True))

    return look


def network_look(network: FeatureNetwork) -> Look:
    """The four maps of a feature network, each averaged over places."""

    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))

    def look(pixels: Tensor) -> Tensor:
        levels = network(pixels.to(device))
        return torch.cat([level.mean(dim=(2, 3)).float() for level in levels], dim=1)

    return look


class StyleReach:
    """``StyleReach(look, images (M, 3, H, W), teacher (N, F, H, W, 3) uint8)(clips)``.

    0 is the teacher's look, 1 that of the images; under 0 is further away than the teacher. None
    when the teacher is as near as can be, so that there is nothing to reach.
    """

    def __init__(self, look: Look, images: Tensor, teacher: np.ndarray) -> None:
        self._look = look
        self._style = self._features(images)
        self._teacher = self._distance(teacher)

    def __call__(self, clips: np.ndarray) -> float | None:
        if self._teacher <= 1e-9:
            return None
        return 1.0 - self._distance(clips) / self._teacher

    def _distance(self, clips: np.ndarray) -> float:
        frames = torch.from_numpy(clips).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        squared = torch.cdist(self._features(frames), self._style).square()
        return float(squared.min(dim=1).values.mean())

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._look(part).cpu() for part in pixels.split(BATCH)])
