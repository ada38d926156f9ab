"""What a base model is to the rest of the trainer.

One record per family, one loaded object per model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from ..models.downloads import Need
from ..models.weights import ModelError
from ..words import allowed_frames

__all__ = ["Companions", "Family", "ModelError", "VideoModel"]

PIXELS_AT_ONCE = 256 * 256
"""Pixels that the autoencoder works on at a time: one frame of 256 px, or sixteen of 64."""

CELLS_AT_ONCE = 16 * 32 * 32
"""Latent cells that a UNet samples at a time, before guidance doubles them: one clip of 16 frames
of 256 px."""


@dataclass(frozen=True)
class Companions:
    """Files that a base model may need beside its own; None where it needs none.

    ``motion_module`` makes a video model of an image model, ``vae`` replaces the model's own.
    """

    motion_module: Path | None = None
    vae: Path | None = None


@dataclass(frozen=True)
class Family:
    """Constants and callables of one kind of base model. A new family is one file and one line in
    the table.

    ``frames`` are the clip lengths it was trained for; ``licence`` is that of its published
    weights, shown wherever a user picks one; ``matches`` recognises its file or folder; ``load``
    reads it with its companions; ``missing`` names, in a moment, the parts that `load` would not
    find; ``forward`` is the network's pass ``(unet, latents (B, C, F, h, w), timesteps (B,), text
    (B, L, D)) -> (B, C, F, h, w)``, which predicts what the model's schedule says.
    """

    name: str
    title: str
    architecture: str
    licence: str
    frames: tuple[int, ...]
    matches: Callable[[Path], bool]
    load: Callable[[Path, torch.dtype, Companions], VideoModel]
    missing: Callable[[Path, Companions], tuple[Need, ...]]
    forward: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass
class VideoModel:
    """A loaded text-to-video model.

    Frozen parts, the UNet that LoRA layers go into, and its noise schedule.
    """

    family: Family
    name: str
    path: Path
    unet: nn.Module
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    scheduler_config: dict[str, Any]
    frames: int
    height: int
    width: int
    fps: int
    base_hash: str
    licence: str
    latent_channels: int = 4
    latent_factor: int = 8
    max_frames: int | None = None
    """Longest clip that these weights can make; None is the family's."""
    motion_module: str = ""
    """File or folder name of the motion module; empty where the model has none of its own."""
    subjects: tuple[str, ...] = ()
    """The words of all that it can draw, where that is next to nothing; empty for most models."""
    resting: bool = False
    """Whether text encoder and autoencoder wait in main memory while they are not needed."""
    _text_cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def prediction_type(self) -> str:
        """What the network predicts, "epsilon" or "v_prediction"."""
        return self.schedule.prediction

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that the text encoder reads, special tokens included."""
        return int(self.tokenizer.model_max_length)

    @property
    def text_dim(self) -> int:
        """Width D of a text vector."""
        return int(self.text_encoder.config.hidden_size)

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
        """Folder of a network that sees what its clips show, which no training uses."""
        return self.brought("judge")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> VideoModel:
        """Move every network, resting ones to main memory.

        Two parts keep fp32: the autoencoder, whose decoder overflows in fp16, and the UNet's last
        convolution. x0 is the prediction divided by alpha, so rounding there grows fifteenfold at
        the noisiest timestep.
        """
        nn.Module.to(self.unet, device, dtype)
        _keep_output_in_fp32(self.unet)
        idle = "cpu" if self.resting else device
        self.text_encoder.to(idle, dtype)
        self.vae.to(idle)
        self.schedule = self.schedule.to(device)
        self._text_cache.clear()
        return self

    @contextmanager
    def awake(self, *parts: nn.Module) -> Iterator[None]:
        """Inside, resting ``parts`` are on the UNet's device; they go back when the outermost ends.

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
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False).eval()
        return self

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer(prompt, verbose=False).input_ids)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Last hidden states (B, L, D) on the UNet's device and in its dtype.

        Each prompt is encoded once and remembered in main memory.
        """
        missing = [p for p in dict.fromkeys(prompts) if p not in self._text_cache]
        if missing:
            with self.awake(self.text_encoder):
                self._encode_missing(missing)
        return torch.stack([self._text_cache[p] for p in prompts]).to(self.device)

    def _encode_missing(self, prompts: Sequence[str]) -> None:
        device = next(self.text_encoder.parameters()).device
        for start in range(0, len(prompts), 32):
            part = prompts[start : start + 32]
            batch = self.tokenizer(
                part,
                padding="max_length",
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
            hidden = self.text_encoder(batch.input_ids.to(device)).last_hidden_state
            self._text_cache.update(zip(part, hidden.to("cpu", self.dtype), strict=True))

    def pooled_text(self, prompts: Sequence[str]) -> Tensor:
        """One vector per prompt (B, D) for the discriminator.

        The mean of the hidden states, unit length.
        """
        pooled = self.encode_text(prompts).float().mean(dim=1)
        return nn.functional.normalize(pooled - self._pooled_origin(), dim=-1)

    def _pooled_origin(self) -> Tensor:
        """The empty prompt's mean state, which all prompts share and which would drown their
        differences.
        """
        return self.encode_text([""]).float().mean(dim=1)

    def predict_eps(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predicted noise (B, C, F, h, w) in fp32 for ``latents`` of that shape, ``timesteps``
        (B,), ``text`` (B, L, D).
        """
        out = self.family.forward(self.unet, latents.to(self.dtype), timesteps, text)
        return self.schedule.eps_from_output(latents, out.float(), timesteps)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Latents (N, 4, H/8, W/8), scaled, of ``pixels`` (N, 3, H, W) in [-1, 1].

        The mode, not a sample.
        """
        with self.awake(self.vae):
            encoded = self.vae.encode(pixels.to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def decode_frames(self, latents: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), about [-1, 1] and not clamped, of scaled ``latents`` (N, 4, h, w).

        In fp32. Training steps use `distill.decoding.FrameDecoder`, which keeps less for the
        gradient.
        """
        with self.awake(self.vae):
            return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float()

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Latents (B, 4, F, h, w) of ``clips`` (B, 3, F, H, W), a few frames at a time."""
        frames = rearrange(clips, "b c f h w -> (b f) c h w")
        with self.awake(self.vae):
            at_once = frames_at_once(*clips.shape[3:])
            parts = [self.encode_frames(part) for part in frames.split(at_once)]
        return rearrange(torch.cat(parts), "(b f) c h w -> b c f h w", b=len(clips))

    def decode_clips(self, latents: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) in [-1, 1] of ``latents`` (B, 4, F, h, w), a few frames at a
        time.
        """
        frames = rearrange(latents, "b c f h w -> (b f) c h w")
        size = (side * self.latent_factor for side in latents.shape[3:])
        with self.awake(self.vae):
            pixels = torch.cat([self.decode_frames(p) for p in frames.split(frames_at_once(*size))])
        return rearrange(pixels.clamp(-1, 1), "(b f) c h w -> b c f h w", b=len(latents))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """``(C, F, h, w)`` of a clip; raises ValueError for sizes this model cannot make."""
        possible = tuple(n for n in self.family.frames if n <= (self.max_frames or n))
        if frames not in possible:
            allowed = allowed_frames(possible)
            raise ValueError(f"`frames`={frames} is not supported by '{self.name}'; use {allowed}.")
        for label, value in (("height", height), ("width", width)):
            if value < self.latent_factor or value % self.latent_factor:
                raise ValueError(
                    f"`{label}`={value} must be a positive multiple of {self.latent_factor} pixels."
                )
        return (
            self.latent_channels,
            frames,
            height // self.latent_factor,
            width // self.latent_factor,
        )


def read_schedule(config: Mapping[str, Any], source: Path) -> NoiseSchedule:
    """The noise schedule of a scheduler ``config``; ``source`` is what to name in an error.

    Raises ModelError for a schedule that ends in pure noise, ValueError as
    `NoiseSchedule.from_config`.
    """
    schedule = NoiseSchedule.from_config(config)
    if float(schedule.alphas_cumprod[-1]) == 0:
        raise ModelError(
            f"'{source}' has a zero terminal SNR schedule (`rescale_betas_zero_snr`): its last "
            "level holds no signal, and that is where sampling in a few steps begins. Use the "
            "model without it."
        )
    return schedule


def clips_at_once(shape: tuple[int, int, int, int]) -> int:
    """How many clips of latent ``shape`` (C, F, h, w) are sampled in one pass, 1 to 8."""
    return max(1, min(8, CELLS_AT_ONCE // (shape[1] * shape[2] * shape[3])))


def frames_at_once(height: int, width: int) -> int:
    """How many frames of this size in pixels the autoencoder takes in one pass."""
    return max(1, PIXELS_AT_ONCE // (height * width))


def _keep_output_in_fp32(unet: nn.Module) -> None:
    last = getattr(unet, "conv_out", None)
    if not isinstance(last, nn.Conv2d) or last.weight.dtype == torch.float32:
        return
    last.float()
    if not last._forward_pre_hooks:  # the first time
        last.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
