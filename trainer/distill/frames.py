"""What the discriminator calls real.

The style folder's images or, without one, frames of the motion source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageSet


class RealFrames(Protocol):
    """A source of real frames with their captions."""

    def batch(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        """Pixels (N, 3, H, W) in [-1, 1] on the CPU, and N captions."""
        ...


class StyleFrames:
    """Images of the style folder, drawn by their repeats."""

    def __init__(self, images: ImageSet):
        self.images = images

    def batch(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng(seed)
        return self.images.batch(self.images.draw(count, rng), rng)


class ClipFrames:
    """Single frames of clean clips ``latents`` (N, C, F, h, w), decoded when they are drawn.

    ``decode`` is the step's own decoder, on ``device``: the discriminator must not tell real from
    fake by rounding.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        device: torch.device,
        latents: Tensor,
        captions: Sequence[str],
    ):
        self.decode, self.device = decode, device
        self.latents, self.captions = latents, list(captions)

    @torch.no_grad()
    def batch(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng(seed)
        clips = rng.integers(len(self.latents), size=count)
        frames = rng.integers(self.latents.shape[2], size=count)
        picked = torch.stack([self.latents[c, :, f] for c, f in zip(clips, frames, strict=True)])
        pixels = self.decode(picked.float().to(self.device)).cpu()
        return pixels.clamp(-1, 1), [self.captions[c] for c in clips]
