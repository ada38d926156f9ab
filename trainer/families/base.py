"""The interface of a loaded base model; its family's record is in `record`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.noise import NoisePath, VariancePreserving
from ..models.weights import ModelError
from ..words import allowed_frames
from .codec import VideoCodec
from .record import Companions, Family
from .text import TextReader, unit_vectors

__all__ = ["Companions", "Family", "ModelError", "VideoModel"]

TEXTS_AT_ONCE = 32

CELLS_AT_ONCE = 16 * 32 * 32
"""Latent cells that a network samples at a time, before guidance doubles them: one clip of 16
frames of 256 px."""


@dataclass
class VideoModel:
    """A loaded text-to-video model.

    Frozen parts, the network that LoRA layers go into, and its noise levels.
    """

    family: Family
    name: str
    path: Path
    network: nn.Module
    codec: VideoCodec
    text: TextReader
    noise: NoisePath
    frames: int
    height: int
    width: int
    fps: int
    base_hash: str
    licence: str
    max_frames: int | None = None
    """Longest clip that these weights can make; None is the family's."""
    motion_module: str = ""
    """File or folder name of the motion module; empty where the model has none of its own."""
    subjects: tuple[str, ...] = ()
    """Words for everything it can draw, for models that can draw very little; empty for most."""
    resting: bool = False
    """Whether text encoder and autoencoder wait in main memory while they are not needed."""
    _text_cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", or "velocity" on a flow."""
        return self.noise.prediction

    def brought(self, name: str) -> Path | None:
        """The file or folder ``name`` that came with the model; None where none did."""
        path = self.path / name
        return path if path.exists() else None

    @property
    def feature_network(self) -> Path | None:
        """Folder of a frame network of its own, which the discriminator can look through."""
        return self.brought("framenet")

    @property
    def judge(self) -> Path | None:
        """Folder of a network that recognises what its clips show; training never uses it."""
        return self.brought("judge")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> VideoModel:
        """Move every network, resting ones to main memory.

        Two parts keep fp32: the autoencoder, whose decoder overflows in fp16, and the network's
        last convolution. x0 is the prediction divided by alpha, so rounding errors grow fifteenfold
        at the noisiest timestep.
        """
        nn.Module.to(self.network, device, dtype)
        _keep_output_in_fp32(self.network)
        idle = "cpu" if self.resting else device
        self.text.encoder.to(idle, dtype)
        self.codec.vae.to(idle)
        self.noise = self.noise.to(device)
        self._text_cache.clear()
        return self

    @contextmanager
    def awake(self, *parts: nn.Module) -> Iterator[None]:
        """Inside, resting ``parts`` are on the network's device; they go back when the outermost
        ends.

        Costs a copy of the part each way; nothing where parts do not rest.
        """
        device = self.device
        moved = [p for p in parts if self.resting and next(p.parameters()).device != device]
        try:
            for part in moved:
                part.to(device)
            yield
        finally:
            for part in moved:
                part.to("cpu")

    def freeze(self) -> VideoModel:
        for module in (self.network, self.codec.vae, self.text.encoder):
            module.requires_grad_(False).eval()
        return self

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """States (B, L, D) on the network's device and in its dtype.

        Each prompt is encoded once and remembered in main memory.
        """
        missing = [p for p in dict.fromkeys(prompts) if p not in self._text_cache]
        if missing:
            with self.awake(self.text.encoder):
                for start in range(0, len(missing), TEXTS_AT_ONCE):
                    part = missing[start : start + TEXTS_AT_ONCE]
                    states = self.text.encode(part).to("cpu", self.dtype)
                    self._text_cache.update(zip(part, states, strict=True))
        return torch.stack([self._text_cache[p] for p in prompts]).to(self.device)

    def pooled_text(self, prompts: Sequence[str]) -> Tensor:
        """One unit vector per prompt (B, D) for the discriminator."""
        return unit_vectors(self.text, self.encode_text(prompts), self.encode_text([""]))

    def predict(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """The network's output (B, C, F, h, w) in fp32 for ``latents`` of that shape at ``level``
        (B,), with ``text`` (B, L, D); `noise` reads it.
        """
        time = self.noise.model_time(level)
        return self.family.denoise(self.network, latents.to(self.dtype), time, text).float()

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Latents (B, C, f, h, w) of ``clips`` (B, 3, F, H, W), a few frames at a time."""
        with self.awake(self.codec.vae):
            return self.codec.encode(clips)

    def decode_clips(self, latents: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) in [-1, 1] of ``latents`` (B, C, f, h, w)."""
        with self.awake(self.codec.vae):
            return self.codec.decode(latents)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """``(C, f, h, w)`` of a clip; raises ValueError for sizes this model cannot make."""
        possible = tuple(n for n in self.family.frames if n <= (self.max_frames or n))
        if frames not in possible:
            allowed = allowed_frames(possible)
            raise ValueError(f"`frames`={frames} is not supported by '{self.name}'; use {allowed}.")
        return self.codec.latent_shape(frames, height, width)


def read_schedule(config: Mapping[str, Any], source: Path) -> VariancePreserving:
    """The noise levels of a scheduler ``config``; ``source`` is what to name in an error.

    Raises ModelError for a schedule that ends in pure noise, ValueError as
    `VariancePreserving.from_config`.
    """
    schedule = VariancePreserving.from_config(config)
    if float(schedule.alphas_cumprod[-1]) == 0:
        raise ModelError(
            f"'{source}' has a zero terminal SNR schedule (`rescale_betas_zero_snr`): its last "
            "noise level has no signal, and few-step sampling begins there. Use the model without "
            "it."
        )
    return schedule


def clips_at_once(shape: tuple[int, int, int, int]) -> int:
    """How many clips of latent ``shape`` (C, F, h, w) are sampled in one pass, 1 to 8."""
    return max(1, min(8, CELLS_AT_ONCE // (shape[1] * shape[2] * shape[3])))


def _keep_output_in_fp32(network: nn.Module) -> None:
    last = getattr(network, "conv_out", None)
    if not isinstance(last, nn.Conv2d) or last.weight.dtype == torch.float32:
        return
    last.float()
    if not last._forward_pre_hooks:  # the first time
        last.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
