"""How far few clips have come from the teacher's look to that of the style images, and whether they
still show what the teacher's clips show.

Both are needed: a grey blob is no style, but each of its frames may be near some style image; and
a blurred clip of the teacher shows the right thing in no style at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..adversarial.features import FeatureNetwork
from ..mini.reading import open_judge
from .networks import BATCH

Look = Callable[[Tensor], Tensor]
"""Features (N, D) of pixels (N, 3, H, W) in [-1, 1]."""


def judge_look(folder: Path) -> Look:
    """Features of the judge in ``folder``, which no training uses, at any size."""
    judge = open_judge(folder)
    size = (judge.side, judge.side)

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

    By the energy distance of the features of frames and images, which also sees that frames are all
    alike (Szekely & Rizzo 2013). 0 is the teacher's look; 1 is as near as one half of the images is
    to the other; below 0 is further away than the teacher. None when the teacher is as near as can
    be, so that there is nothing to reach.
    """

    def __init__(self, look: Look, images: Tensor, teacher: np.ndarray) -> None:
        self._look = look
        self._style = _features(look, images)
        halves = self._style[::2], self._style[1::2]
        self._floor = max(0.0, energy_distance(*halves)) if len(self._style) > 3 else 0.0
        self._teacher = energy_distance(_features(look, _pixels(teacher)), self._style)

    def __call__(self, clips: np.ndarray) -> float | None:
        way = self._teacher - self._floor
        if way <= 1e-9:
            return None
        reached = energy_distance(_features(self._look, _pixels(clips)), self._style)
        return 1.0 - (reached - self._floor) / way


class ContentKept:
    """``ContentKept(look, teacher (N, F, H, W, 3) uint8)(clips)``, clips of the same prompts and
    noise: the mean cosine of what sets each frame's features apart from the mean of its side.

    1 is the teacher's content in whatever style, 0 is frames that have nothing to do with it. None
    where the teacher's frames do not differ.
    """

    def __init__(self, look: Look, teacher: np.ndarray) -> None:
        self._look = look
        self._teacher = self._own_part(teacher)

    def __call__(self, clips: np.ndarray) -> float | None:
        if float(self._teacher.norm()) < 1e-6:
            return None
        return float(F.cosine_similarity(self._own_part(clips), self._teacher, dim=1).mean())

    def _own_part(self, clips: np.ndarray) -> Tensor:
        features = _features(self._look, _pixels(clips))
        return features - features.mean(dim=0)


class ConstantsLeft:
    """``ConstantsLeft(teacher (N, F, H, W, 3) uint8)(clips)``: how much of what all of the
    teacher's clips have at the same place, such as a stamp, is left in clips of the same prompts.

    By the fine details of mean frames: the correlation of each clip with the teacher's clips of the
    other prompts, lighter or darker, over that of the teacher's own. 1 is all of it, 0 none. None
    for a single clip, and where the teacher's have nothing in common.
    """

    least = 0.15
    """Mean correlation between the teacher's clips below which nothing is common."""

    def __init__(self, teacher: np.ndarray) -> None:
        self._teacher = _details(teacher)
        self._common = self._with_others(self._teacher) if len(teacher) > 1 else 0.0

    def __call__(self, clips: np.ndarray) -> float | None:
        if self._common < self.least:
            return None
        return abs(self._with_others(_details(clips))) / self._common

    def _with_others(self, details: Tensor) -> float:
        pairs = details @ self._teacher.T
        count = len(pairs)
        return float((pairs.sum() - pairs.diagonal().sum()) / (count * (count - 1)))


def _details(clips: np.ndarray) -> Tensor:
    """Unit vectors (N, H W) of what is finer than a sixteenth of the side in mean frames."""
    grey = torch.from_numpy(clips.mean(axis=(1, 4), dtype=np.float32))[:, None]
    reach = max(1, min(grey.shape[2:]) // 32)
    wide = F.avg_pool2d(grey, 2 * reach + 1, 1, reach, count_include_pad=False)
    return F.normalize((grey - wide).flatten(1), dim=1)


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Energy distance of two samples (N, D) and (M, D), unbiased: about 0, or below, where both are
    drawn from one distribution. N and M of 1 count as samples without spread.
    """
    return float(
        2 * torch.cdist(first, second).mean() - _mean_distance(first) - _mean_distance(second)
    )


def _mean_distance(sample: Tensor) -> Tensor:
    pairs = max(1, len(sample) * (len(sample) - 1))
    return torch.cdist(sample, sample).sum() / pairs


def _pixels(clips: np.ndarray) -> Tensor:
    return torch.from_numpy(clips).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _features(look: Look, pixels: Tensor) -> Tensor:
    return torch.cat([look(part).cpu() for part in pixels.split(BATCH)])
