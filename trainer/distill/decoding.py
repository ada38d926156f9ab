"""Frames decoded inside a training step, with a gradient and in little memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..families.base import VideoModel, frames_at_once
from .checkpointing import enable_checkpointing, recompute


class FrameDecoder:
    """Pixels (N, 3, H, W), not clamped, fp32, of scaled latents (N, 4, h, w); differentiable.

    ``dtype`` computes in half precision with a copy of the decoder's weights, so that the
    autoencoder itself keeps fp32. With ``checkpointing`` nothing but the latents is kept between
    the passes over two groups of frames, and nothing but block inputs inside one.
    """

    def __init__(self, model: VideoModel, dtype: torch.dtype, checkpointing: bool):
        self.factor = model.latent_factor
        self.scaling = float(model.vae.config.scaling_factor)
        self.dtype = dtype
        self.checkpointing = checkpointing
        self.vae: Any = model.vae
        if dtype != torch.float32 or model.resting or checkpointing:
            self.vae = nn.Module.to(_decoding_half(model.vae), model.device, dtype)
        if checkpointing:
            enable_checkpointing(self.vae)

    def __call__(self, latents: Tensor) -> Tensor:
        size = [side * self.factor for side in latents.shape[2:]]
        parts = latents.split(frames_at_once(*size))
        if len(parts) > 1 and self.checkpointing and torch.is_grad_enabled():
            return torch.cat([recompute(self._decode, part) for part in parts])
        return torch.cat([self._decode(part) for part in parts])

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.scaling).to(self.dtype)).sample.float()


def _decoding_half(vae: Any) -> Any:
    """A copy of ``vae`` without its encoder."""
    encoder, vae.encoder = vae.encoder, None
    try:
        return deepcopy(vae).requires_grad_(False).eval()
    finally:
        vae.encoder = encoder
