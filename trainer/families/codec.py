"""The interface of a base model's autoencoder, between pixels and latents."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from einops import rearrange
from torch import Tensor, nn

from ..models.checkpointing import enable_checkpointing, recompute

PIXELS_AT_ONCE = 256 * 256
"""Pixels that the autoencoder works on at a time: one frame of 256 px, or sixteen of 64."""
BLOCKS = (ResnetBlock2D, Downsample2D, Upsample2D, AutoencoderTinyBlock)


class VideoCodec(Protocol):
    """An autoencoder of clips. Frames are counted in pixels: a codec may put several into one
    latent.
    """

    vae: Any
    channels: int
    factor: int
    """Pixels a side of one latent cell; height and width are multiples of it."""
    lead: int
    """Latents at the beginning of a clip that are of another kind than those after them, because
    they hold fewer frames: the two kinds are never compared with each other."""

    @property
    def quick(self) -> VideoCodec:
        """One that decodes faster and less exactly, for previews; itself where there is none."""
        ...

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """``(C, f, h, w)`` of a clip; ValueError for a size that it cannot have."""
        ...

    def encode(self, clips: Tensor) -> Tensor:
        """Latents (B, C, f, h, w), scaled, of ``clips`` (B, 3, F, H, W) in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) in [-1, 1] of scaled ``latents`` (B, C, f, h, w)."""
        ...

    def part(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of what training decodes of a frame of ``height`` x ``width``
        pixels: all of it, or as much as a decoder of that weight can be given gradients for.
        """
        ...

    def decode_frames(self, latents: Tensor, frames: Tensor, place: Tensor | None = None) -> Tensor:
        """Frames ``frames`` (B, K) of clips ``latents`` (B, C, f, h, w): pixels (B * K, 3, H, W),
        clip by clip, fp32, about [-1, 1] and not clamped; differentiable.

        With ``place`` (2,), from 0 to below 1 down and across, they are the `part` of each frame
        that lies there, and otherwise whole frames.
        """
        ...

    def for_training(
        self, device: torch.device, dtype: torch.dtype, checkpointing: bool, apart: bool
    ) -> VideoCodec:
        """One on ``device`` whose `decode_frames` computes in ``dtype`` and, with
        ``checkpointing``, keeps little for the gradient. ``apart``: with weights of its own in any
        case.
        """
        ...


class FrameCodec:
    """An image autoencoder of diffusers (KL or tiny), one frame after another."""

    lead = 0

    def __init__(self, vae: Any, channels: int = 4, factor: int = 8):
        self.vae, self.channels, self.factor = vae, channels, factor
        self.scaling = float(vae.config.scaling_factor)
        self.checkpointing = False

    @property
    def quick(self) -> FrameCodec:
        return self

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        for label, value in (("height", height), ("width", width)):
            if value < self.factor or value % self.factor:
                raise ValueError(
                    f"`{label}`={value} must be a positive multiple of {self.factor} pixels."
                )
        return self.channels, frames, height // self.factor, width // self.factor

    def encode(self, clips: Tensor) -> Tensor:
        frames = rearrange(clips, "b c f h w -> (b f) c h w")
        at_once = frames_at_once(*clips.shape[3:])
        parts = [self.encode_frames(part) for part in frames.split(at_once)]
        return rearrange(torch.cat(parts), "(b f) c h w -> b c f h w", b=len(clips))

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Latents (N, C, h, w), scaled, of ``pixels`` (N, 3, H, W); the mode, not a sample."""
        encoded = self.vae.encode(pixels.to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        pixels = self.decode_images(rearrange(latents, "b c f h w -> (b f) c h w"))
        return rearrange(pixels.clamp(-1, 1), "(b f) c h w -> b c f h w", b=len(latents))

    def part(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def decode_frames(self, latents: Tensor, frames: Tensor, place: Tensor | None = None) -> Tensor:
        return self.decode_images(pick_frames(latents, frames))

    def decode_images(self, latents: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), not clamped, of scaled ``latents`` (N, C, h, w), a few at a time."""
        size = [side * self.factor for side in latents.shape[2:]]
        parts = latents.split(frames_at_once(*size))
        if len(parts) > 1 and self.checkpointing and torch.is_grad_enabled():
            return torch.cat([recompute(self._decode, part) for part in parts])
        return torch.cat([self._decode(part) for part in parts])

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.scaling).to(self.vae.dtype)).sample.float()

    def for_training(
        self, device: torch.device, dtype: torch.dtype, checkpointing: bool, apart: bool
    ) -> FrameCodec:
        """As `VideoCodec.for_training`; the autoencoder itself keeps fp32 and its encoder."""
        other = copy(self)
        other.checkpointing = checkpointing
        if dtype != torch.float32 or apart or checkpointing:
            other.vae = nn.Module.to(decoding_half(self.vae), device, dtype)
        if checkpointing:
            enable_checkpointing(other.vae, BLOCKS)
        return other


def pick_frames(latents: Tensor, frames: Tensor) -> Tensor:
    """Frames ``frames`` (B, K) of ``latents`` (B, C, F, h, w) as (B * K, C, h, w), clip by clip."""
    index = frames[:, None, :, None, None]
    index = index.expand(-1, latents.shape[1], -1, *latents.shape[3:])
    return rearrange(latents.gather(2, index), "b c k h w -> (b k) c h w")


def frames_at_once(height: int, width: int) -> int:
    """How many frames of this size in pixels the autoencoder takes in one pass."""
    return max(1, PIXELS_AT_ONCE // (height * width))


def decoding_half(vae: Any) -> Any:
    """A frozen copy of ``vae`` without its encoder."""
    encoder, vae.encoder = vae.encoder, None
    try:
        return deepcopy(vae).requires_grad_(False).eval()
    finally:
        vae.encoder = encoder
