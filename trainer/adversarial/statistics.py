"""What frames of a style look like on the whole: the statistics loss on shallow feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .memory import FrameMemory

GRID = 4
CAPACITY = 64
CAPTION_SHARE = 4.0
"""Squared distance of captions that lie one spread apart, where one spread of looks has 1."""
ENOUGH = 8
"""Vectors of a side without which no distance is taken: a spread of fewer means little."""


def shallower_half(maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps that tell looks apart; the deeper ones tell things apart."""
    return list(maps[: len(maps) // 2])


def cell_statistics(maps: Tensor) -> Tensor:
    """Mean and deviation of every channel in every cell of a `GRID` x `GRID` grid.

    ``maps`` (N, C, h, w) give (N, 2 * C * GRID**2), fp32. Mean and deviation of feature maps are
    the style of a picture (Huang and Belongie 2017); the grid tells where in the frame, so that a
    mark that is always in one corner shows.
    """
    maps = maps.float()
    mean = functional.adaptive_avg_pool2d(maps, GRID)
    variance = functional.adaptive_avg_pool2d(maps.square(), GRID) - mean.square()
    deviation = (variance.clamp_min(0) + 1e-4).sqrt()
    return torch.cat((mean, deviation), dim=1).flatten(1)


class StatisticsLoss(FrameMemory):
    """How far the student's frames are, as a crowd, from the real ones: the energy distance
    (Szekely and Rizzo 2013) of their `cell_statistics` together with their captions.

    Twice the mean distance to the real frames, less that to the student's own earlier frames. The
    first alone would draw every frame to the middle of the style; the second keeps them as far from
    each other as real ones are. Both crowds are the last `CAPACITY` frames seen. Unlike a
    discriminator it has nothing to learn and cannot be fooled: it pulls from the first step on,
    and as hard when the student is far off. The caption counts as one more coordinate, so that a
    red thing is drawn to the red ones of the style more than to others.
    """

    def __call__(
        self, ours: Sequence[Tensor], real: Sequence[Tensor], text: Tensor, real_text: Tensor
    ) -> Tensor:
        """Scalar, the mean over frames and the sum over maps ``ours`` (N, C_i, h_i, w_i), with
        gradients, and ``real`` (M, C_i, h_i, w_i); both join their crowds with their captions
        ``text`` (N, D) and ``real_text`` (M, D).
        """
        apart = self._captions_apart(text, real_text)
        pairs = enumerate(zip(ours, real, strict=True))
        return torch.stack([self._level(i, *pair, *apart) for i, pair in pairs]).sum()

    def _captions_apart(self, text: Tensor, real_text: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (N, .) of the captions to those of real and of earlier frames.

        In units of the spread of the real captions; without one, as in a folder that has no
        captions, they are 0.
        """
        said = functional.layer_norm(text.float(), text.shape[1:])
        real_said = functional.layer_norm(real_text.float(), real_text.shape[1:])
        wanted = self._join("real.text", real_said)
        earlier = self.kept.get("ours.text", said[:0])
        self._join("ours.text", said)
        spread = wanted.var(dim=0, correction=0).sum()
        unit = CAPTION_SHARE * (spread > 1e-3 * said.shape[1]) / spread.clamp_min(1e-6)
        return _squares(said, wanted) * unit, _squares(said, earlier) * unit

    def _level(
        self, index: int, ours: Tensor, real: Tensor, to_real: Tensor, to_earlier: Tensor
    ) -> Tensor:
        found = cell_statistics(ours)
        wanted = self._join(f"real.{index}", cell_statistics(real))
        earlier = self.kept.get(f"ours.{index}", found.detach()[:0])
        self._join(f"ours.{index}", found)
        if len(wanted) < ENOUGH or len(earlier) < ENOUGH:
            return 0.0 * found.sum()
        spread = wanted.std(dim=0)
        scale = (spread + 0.05 * spread.mean()).clamp_min(1e-6) * found.shape[1] ** 0.5
        near = (_squares(found / scale, wanted / scale) + to_real).sqrt()
        far = (_squares(found / scale, earlier / scale) + to_earlier).sqrt()
        return 2 * near.mean() - 2 * far.mean()

    def _join(self, name: str, found: Tensor) -> Tensor:
        known = self.kept.get(name)
        both = found.detach() if known is None else torch.cat((known, found.detach()))
        self.kept[name] = both[-CAPACITY:]
        return self.kept[name]


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (N, M) of the rows of two matrices; MPS lacks the backward of cdist."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(1e-8)
