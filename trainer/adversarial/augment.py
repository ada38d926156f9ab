"""Differentiable augmentation of the discriminator's input (DiffAugment, Zhao et al. 2020).

The style folder is small; without augmentation the discriminator memorises it. All randomness is
drawn first, into `AugmentDraws`, as fractions of the frame: the same draws can be applied to
real and fake frames and to frames of any size. Written in plain tensor operations: kornia's
versions draw from the global generator and clip to [0, 1], which stops the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TRANSLATION = 1 / 8
"""Largest shift, as a fraction of the frame's side."""
CUTOUT = 1 / 2
"""Side of the cut-out square, as a fraction of the frame's side."""


@dataclass(frozen=True)
class AugmentDraws:
    """Draws for N frames, made by `draw_augment`: uniform in [0, 1), generator's device.

    ``brightness``, ``saturation``, ``contrast`` (N,); ``shift`` and ``hole`` (N, 2) as (y, x).
    """

    policy: tuple[str, ...]
    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor
    hole: Tensor

    def __len__(self) -> int:
        return len(self.brightness)


def parse_policy(policy: str) -> tuple[str, ...]:
    """``"color,translation,cutout"`` -> its parts in order; ``""`` -> no augmentation.

    Raises ``ValueError`` for an unknown part.
    """
    parts = tuple(part.strip() for part in policy.split(",") if part.strip())
    unknown = [part for part in parts if part not in AUGMENTATIONS]
    if unknown:
        allowed = ", ".join(AUGMENTATIONS)
        raise ValueError(
            f"`policy`={policy!r} names {unknown[0]!r}, which is not an augmentation; use any of "
            f"{allowed}, separated by commas, or leave it empty for none."
        )
    return parts


def draw_augment(policy: str, count: int, generator: torch.Generator) -> AugmentDraws:
    """Draws for ``count`` frames; ``ValueError`` for an unknown ``policy``.

    All seven numbers per frame are drawn for every policy, so that the policy does not change the
    random numbers that follow.
    """
    parts = parse_policy(policy)
    draws = torch.rand(count, 7, generator=generator, device=generator.device)
    brightness, saturation, contrast = draws[:, :3].unbind(1)
    return AugmentDraws(parts, brightness, saturation, contrast, draws[:, 3:5], draws[:, 5:7])


def apply_augment(pixels: Tensor, draws: AugmentDraws) -> Tensor:
    """Frames (N, 3, H, W) in [-1, 1] -> augmented frames of the same shape, not clipped.

    A pure function, differentiable in ``pixels``. Raises ``ValueError`` when the counts differ.
    """
    if len(draws) != len(pixels):
        raise ValueError(
            f"`draws` are for {len(draws)} frames, got {len(pixels)}; draw one set for each frame."
        )
    for part in draws.policy:
        pixels = AUGMENTATIONS[part](pixels, draws)
    return pixels


def _color(pixels: Tensor, draws: AugmentDraws) -> Tensor:
    """Brightness +-0.5, then saturation x [0, 2], then contrast x [0.5, 1.5]."""

    def broadcast(values: Tensor) -> Tensor:
        return values.to(pixels)[:, None, None, None]

    pixels = pixels + (broadcast(draws.brightness) - 0.5)
    grey = pixels.mean(1, keepdim=True)
    pixels = (pixels - grey) * (broadcast(draws.saturation) * 2) + grey
    level = pixels.mean((1, 2, 3), keepdim=True)
    return (pixels - level) * (broadcast(draws.contrast) + 0.5) + level


def _translation(pixels: Tensor, draws: AugmentDraws) -> Tensor:
    """Shift by whole pixels, at most an eighth of a side; the exposed edge becomes mid grey."""
    count, _, height, width = pixels.shape
    shift = draws.shift.to(pixels.device)
    rows, row_inside = _shifted(shift[:, 0], height)
    columns, column_inside = _shifted(shift[:, 1], width)
    sample = torch.arange(count, device=pixels.device)[:, None, None]
    moved = pixels.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    return moved.permute(0, 3, 1, 2) * inside[:, None].to(pixels.dtype)


def _shifted(draw: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Source index of every pixel along one side, (N, side), and whether it lies in the frame."""
    reach = int(side * TRANSLATION + 0.5)
    shift = (draw * (2 * reach + 1)).floor().long() - reach
    source = torch.arange(side, device=draw.device)[None] - shift[:, None]
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _cutout(pixels: Tensor, draws: AugmentDraws) -> Tensor:
    """A square of half a side set to mid grey; its centre lies anywhere in the frame."""
    hole = draws.hole.to(pixels.device)
    rows, columns = (_covered(hole[:, axis], pixels.shape[2 + axis]) for axis in (0, 1))
    keep = ~(rows[:, :, None] & columns[:, None, :])
    return pixels * keep[:, None].to(pixels.dtype)


def _covered(centre: Tensor, side: int) -> Tensor:
    """Which pixels along one side the hole covers, (N, side)."""
    size = int(side * CUTOUT + 0.5)
    start = (centre * side).floor().long() - size // 2
    place = torch.arange(side, device=centre.device)[None]
    return (place >= start[:, None]) & (place < start[:, None] + size)


AUGMENTATIONS: dict[str, Callable[[Tensor, AugmentDraws], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
