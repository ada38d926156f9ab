"""What is where in a frame, whatever its look: the content loss on deep feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .memory import FrameMemory

DECAY = 0.95


def deeper_half(maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps that tell things apart; the shallower ones tell looks apart."""
    return list(maps[len(maps) // 2 :])


class ContentLoss(FrameMemory):
    """How differently two frames are laid out: 1 - cosine of their deep features.

    Subtract each side's running mean first, location by location. What all the teacher's frames
    have in common is its look (a background, a watermark), and what all the student's have in
    common is the style: neither counts, only what sets one frame apart from the others. Then
    subtract from each map its mean over the frame. One cosine over all places lets the things that
    stand out count, and not the texture of a background.
    """

    def __call__(self, ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The loss (N,), summed over maps (N, C_i, h_i, w_i) of the student's frames and of those
        they are compared with; each call brings the averages up to date.
        """
        losses = []
        for index, (a, b) in enumerate(zip(ours, wanted, strict=True)):
            own = _layout(a.float() - self._average(f"ours.{index}", a))
            other = _layout(b.float() - self._average(f"wanted.{index}", b))
            losses.append(1 - functional.cosine_similarity(own, other, dim=1))
        return torch.stack(losses).sum(dim=0)

    def _average(self, name: str, maps: Tensor) -> Tensor:
        now = maps.detach().float().mean(dim=0, keepdim=True)
        known = self.kept.get(name)
        self.kept[name] = now if known is None else known.lerp(now, 1 - DECAY)
        return self.kept[name]


def _layout(maps: Tensor) -> Tensor:
    places = maps.flatten(2)
    return (places - places.mean(dim=2, keepdim=True)).flatten(1)
