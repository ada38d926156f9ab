"""What all frames have in common, place by place: the common loss on shallow feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .memory import FrameMemory

BANDS = 4
"""Of noise levels, each with an average of its own: clips made of much noise and of little differ,
and in one average a brightness too high here would make up for one too low there."""
MEMORY = 160
"""Frames that an average reaches back."""


class CommonLoss(FrameMemory):
    """How far the average of the student's frames is from the average of the real ones.

    What differs from frame to frame is gone in an average. What is the same in all of them, as a
    watermark is, stands out there, however faint it is in each: the averages are of whole maps, at
    full resolution. Each place counts in units of the deviation of the real frames there, with a
    pseudo-Huber norm, so that a background far off does not outweigh all the rest.
    """

    def __call__(self, ours: Sequence[Tensor], real: Sequence[Tensor], level: Tensor) -> Tensor:
        """Scalar, the mean over frames and the sum over maps ``ours`` (N, C_i, h_i, w_i), with
        gradients, and ``real`` (M, C_i, h_i, w_i); ``level`` (N,) is the noise that the student's
        frames were made of, 0 to 1. Each call brings the averages up to date.
        """
        band = (level * BANDS).long().clamp(0, BANDS - 1)
        member = (band[:, None] == torch.arange(BANDS, device=band.device)).float()
        pairs = enumerate(zip(ours, real, strict=True))
        return torch.stack([self._map(index, *pair, member) for index, pair in pairs]).sum()

    def _map(self, index: int, ours: Tensor, real: Tensor, member: Tensor) -> Tensor:
        real, all_real = real.float(), member.new_ones(len(real), 1)
        wanted = self._average(f"real.{index}", real, all_real)
        squares = self._average(f"squares.{index}", real.square(), all_real)
        variance = (squares - wanted.square()).clamp_min(0)
        scale = (variance + 0.05 * variance.mean()).clamp_min(1e-6).sqrt()
        # The average's value, and the gradient of these frames as if they were all of it.
        batch = _means(ours.float(), member)
        own = batch + (self._average(f"ours.{index}", ours.float(), member) - batch).detach()
        each = (1 + ((own - wanted) / scale).square()).sqrt() - 1
        return (each.mean(dim=(1, 2, 3)) * member.mean(dim=0)).sum()

    def _average(self, name: str, maps: Tensor, member: Tensor) -> Tensor:
        """Running averages (G, C, h, w) of the groups in which ``member`` (N, G) puts the maps."""
        now, count = _means(maps.detach(), member), member.sum(dim=0)
        known = self.kept.get(name, torch.zeros_like(now))
        seen = self.kept.get(f"seen.{name}", torch.zeros_like(count))
        self.kept[f"seen.{name}"] = seen = (seen + count).clamp_max(MEMORY)
        share = (count / seen.clamp_min(1)).clamp_max(1)
        self.kept[name] = known.lerp(now, share[:, None, None, None])
        return self.kept[name]


def _means(maps: Tensor, member: Tensor) -> Tensor:
    """Means (G, C, h, w) of the maps (N, C, h, w) of each group; 0 of a group without any."""
    total = torch.einsum("ng,nchw->gchw", member, maps)
    return total / member.sum(dim=0).clamp_min(1)[:, None, None, None]
