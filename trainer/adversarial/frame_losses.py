"""Losses on frames that keep running statistics: content, statistics, and the shared average.

They compare feature maps (N, C_i, h_i, w_i) of the student's frames with those of others. The
running statistics are in a `LossMemory`: a step takes one and returns the next, so a rejected step
has no effect and a checkpoint can store it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn import functional

from .losses import GradientRatio

DECAY = 0.95
"""Decay per batch of the running means of the content loss."""
GRID = 4
"""Grid cells per side in the statistics loss."""
CAPACITY = 64
"""Number of recent frames that the statistics loss compares with."""
CAPTION_SHARE = 4.0
"""Squared distance of captions that lie one spread apart, where one spread of looks has 1."""
ENOUGH = 8
"""Vectors needed on each side before a distance is computed; fewer say little about a spread."""
BANDS = 4
"""Of noise levels, each with an average of its own: clips made of much noise and of little differ,
and in one average a brightness too high here would make up for one too low there."""
REACH = 160
"""Length in frames of the running averages of the shared-average loss."""


def shallower_half(maps: Sequence[Tensor]) -> list[Tensor]:
    """The shallow maps, which distinguish looks."""
    return list(maps[: len(maps) // 2])


def deeper_half(maps: Sequence[Tensor]) -> list[Tensor]:
    """The deep maps, which distinguish content."""
    return list(maps[len(maps) // 2 :])


class FrameMemory:
    """Tensors by name in ``kept``. They are replaced, never changed in place, so a saved state only
    copies references and is cheap to restore.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __copy__(self) -> FrameMemory:
        other = type(self)()
        other.kept = dict(self.kept)
        return other

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.kept = dict(state)


class ContentLoss(FrameMemory):
    """Difference in content of two frames: 1 - cosine of their deep features.

    Subtract each side's running mean first, location by location. All the teacher's frames share
    its look (a background, a watermark), and all the student's frames share the style. Neither
    counts, only what distinguishes a frame from the others. Then subtract from each map its mean
    over the frame. One cosine over all locations gives weight to salient objects, not to background
    texture.
    """

    def __call__(self, ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The loss (N,), summed over maps (N, C_i, h_i, w_i) of the student's frames and of the
        maps they are compared with; each call updates the averages.
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


def cell_statistics(maps: Tensor) -> Tensor:
    """Mean and deviation of every channel in every cell of a `GRID` x `GRID` grid.

    ``maps`` (N, C, h, w) give (N, 2 * C * GRID**2), fp32. Mean and deviation of feature maps are
    the style of a picture (Huang and Belongie 2017); the grid adds the location, so a mark that is
    always in one corner counts.
    """
    maps = maps.float()
    mean = functional.adaptive_avg_pool2d(maps, GRID)
    variance = functional.adaptive_avg_pool2d(maps.square(), GRID) - mean.square()
    deviation = (variance.clamp_min(0) + 1e-4).sqrt()
    return torch.cat((mean, deviation), dim=1).flatten(1)


class StatisticsLoss(FrameMemory):
    """Distance between the distributions of the student's and the real frames: the energy distance
    (Szekely and Rizzo 2013) of their `cell_statistics` together with their captions.

    It is twice the mean distance to the real frames minus the mean distance to the student's own
    earlier frames. The first term alone would pull every frame to the centre of the style; the
    second keeps frames as far from each other as real ones are. Both sets are the last `CAPACITY`
    frames. Unlike a discriminator, this needs no training and cannot be fooled, and its gradient
    does not vanish when the student is far off. The caption is one more coordinate, so a red object
    is pulled towards the style's red objects.
    """

    def __call__(
        self, ours: Sequence[Tensor], real: Sequence[Tensor], text: Tensor, real_text: Tensor
    ) -> Tensor:
        """Scalar, the mean over frames and the sum over maps ``ours`` (N, C_i, h_i, w_i), with
        gradients, and ``real`` (M, C_i, h_i, w_i); both are added to their sets with their captions
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
    """Squared distances (N, M) of the rows of two matrices; MPS has no backward for cdist."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(1e-8)


class CommonLoss(FrameMemory):
    """Distance between the average of the student's frames and the average of the real ones.

    An average removes what differs between frames and keeps what all share, such as a watermark,
    however faint. The averages are of whole maps at full resolution. Each location is scaled by the
    deviation of the real frames there, with a pseudo-Huber norm, so that a very different
    background does not dominate.
    """

    def __call__(self, ours: Sequence[Tensor], real: Sequence[Tensor], level: Tensor) -> Tensor:
        """Scalar, the mean over frames and the sum over maps ``ours`` (N, C_i, h_i, w_i), with
        gradients, and ``real`` (M, C_i, h_i, w_i); ``level`` (N,) is the noise that the student's
        frames were made of, 0 to 1. Each call updates the averages.
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
        # The value of the average, with a gradient as if it consisted of these frames alone.
        batch = _means(ours.float(), member)
        own = batch + (self._average(f"ours.{index}", ours.float(), member) - batch).detach()
        each = (1 + ((own - wanted) / scale).square()).sqrt() - 1
        return (each.mean(dim=(1, 2, 3)) * member.mean(dim=0)).sum()

    def _average(self, name: str, maps: Tensor, member: Tensor) -> Tensor:
        """Running averages (G, C, h, w) of the groups in which ``member`` (N, G) puts the maps."""
        now, count = _means(maps.detach(), member), member.sum(dim=0)
        known = self.kept.get(name, torch.zeros_like(now))
        seen = self.kept.get(f"seen.{name}", torch.zeros_like(count))
        self.kept[f"seen.{name}"] = seen = (seen + count).clamp_max(REACH)
        share = (count / seen.clamp_min(1)).clamp_max(1)
        self.kept[name] = known.lerp(now, share[:, None, None, None])
        return self.kept[name]


def _means(maps: Tensor, member: Tensor) -> Tensor:
    """Means (G, C, h, w) of the maps (N, C, h, w) of each group; 0 of a group without any."""
    total = torch.einsum("ng,nchw->gchw", member, maps)
    return total / member.sum(dim=0).clamp_min(1)[:, None, None, None]


@dataclass(frozen=True)
class LossMemory:
    """Running statistics that the losses keep between steps."""

    content: ContentLoss = field(default_factory=ContentLoss)
    statistics: StatisticsLoss = field(default_factory=StatisticsLoss)
    common: CommonLoss = field(default_factory=CommonLoss)
    ratio: GradientRatio = field(default_factory=GradientRatio)

    def copy(self) -> LossMemory:
        """An independent copy; tensors are shared, because they are never changed in place."""
        return LossMemory(**{part.name: copy(getattr(self, part.name)) for part in fields(self)})

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state of each loss by name; losses without state are left out."""
        found = {part.name: getattr(self, part.name).state_dict() for part in fields(self)}
        if found["ratio"]["norms"] is None:
            del found["ratio"]
        return found

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore `tensors`; losses that are not in them start empty."""
        for part in fields(self):
            nothing = {"norms": None} if part.name == "ratio" else {}
            getattr(self, part.name).load_state_dict(dict(tensors.get(part.name, nothing)))
