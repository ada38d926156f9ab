"""The discriminator's real frames: style images or, without a folder, frames of the motion
source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageSet
from ..families.codec import VideoCodec


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
    """Single frames of clean clips ``latents`` (N, C, f, h, w) of ``frames`` frames, decoded when
    they are drawn.

    ``decoder`` is the step's own decoder, on ``device``: rounding must not let the discriminator
    distinguish real from fake.
    """

    def __init__(
        self,
        decoder: VideoCodec,
        device: torch.device,
        latents: Tensor,
        frames: int,
        captions: Sequence[str],
    ):
        self.decoder, self.device, self.frames = decoder, device, frames
        self.latents, self.captions = latents, list(captions)

    @torch.no_grad()
    def batch(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng(seed)
        clips = rng.integers(len(self.latents), size=count)
        frames = torch.as_tensor(rng.integers(self.frames, size=count))[:, None].to(self.device)
        latents = self.latents[clips].float().to(self.device)
        pixels = self.decoder.decode_frames(latents, frames).cpu()
        return pixels.clamp(-1, 1), [self.captions[c] for c in clips]
