"""Frames that the student's are compared with: what the discriminator calls real, and the ends of
the teacher's trajectories.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageSet
from ..families.codec import VideoCodec
from .features import FeatureNetwork
from .frame_losses import deeper_half


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


KEPT_BYTES = 1 << 30


class EndMaps:
    """The deeper feature maps of ``clips`` (N, C, f, h, w) of ``frames`` frames: the ends of the
    teacher's trajectories.

    A clip is decoded by ``decoder`` as a whole when one of its frames is first needed, so that its
    maps do not depend on the rest of the batch. They are kept in half precision in main memory, up
    to `KEPT_BYTES`; beyond that the oldest are dropped and recomputed.
    """

    def __init__(
        self,
        clips: Tensor,
        frames: int,
        decoder: VideoCodec,
        features: FeatureNetwork,
        device: torch.device,
    ):
        self.clips, self.decoder, self.features, self.device = clips, decoder, features, device
        self._all = torch.arange(frames, device=device)[None]
        self._kept: OrderedDict[int, list[Tensor]] = OrderedDict()
        self._bytes = 0

    def __call__(self, rows: Tensor, frames: Tensor) -> list[Tensor]:
        """Maps (B * K, C_i, h_i, w_i) on the device of ``frames`` (B, K) of the clips ``rows``
        (B,), clip by clip.
        """
        pairs = zip(rows.tolist(), frames.cpu(), strict=True)
        each = [[maps[numbers] for maps in self._maps(row)] for row, numbers in pairs]
        return [torch.cat(maps).to(self.device) for maps in zip(*each, strict=True)]

    def _maps(self, row: int) -> list[Tensor]:
        if row not in self._kept:
            self._kept[row] = made = self._look(row)
            self._bytes += _bytes(made)
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return self._kept[row]

    @torch.no_grad()
    def _look(self, row: int) -> list[Tensor]:
        clip = self.clips[row][None].float().to(self.device)
        pixels = self.decoder.decode_frames(clip, self._all)
        return [maps.half().cpu() for maps in deeper_half(self.features(pixels))]


def _bytes(maps: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in maps)
