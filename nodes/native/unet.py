"""Diffusers video UNets with ComfyUI's interface: latents as a batch of frames, one or several
videos.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from einops import rearrange
from torch import Tensor

from .blocks import down_layers
from .control import check_rows, input_residuals, read_control
from .info import VideoInfo
from .patches import core_patches


def split_rows(rows: int, options: dict[str, Any]) -> tuple[int, int]:
    """``(videos, frames)`` of a batch of ``rows`` frames.

    ``options`` are ComfyUI's transformer options: ``cond_or_uncond`` has one entry per conditioning
    chunk (prompt, negative prompt, ...), each with the same videos; ``mcm_frames`` is the length of
    one video, which `latents.sample_videos` sets. Without it a chunk is one video. Raises
    ValueError when the rows do not divide.
    """
    chunks = max(1, len(options.get("cond_or_uncond") or ()))
    per_chunk, rest = divmod(rows, chunks)
    frames = options.get("mcm_frames") or per_chunk
    if rest or per_chunk % frames:
        raise ValueError(
            f"The latent batch has {per_chunk} frames, which is not a whole number of videos of "
            f"`frames`={frames}. Connect LATENT and MODEL of the same 'Empty Latent Video' node. "
            "To sample a single video, connect a MODEL that did not pass through one."
        )
    return rows // frames, frames


def fold(x: Tensor, videos: int) -> Tensor:
    """Latents (videos * F, C, h, w) as (videos, C, F, h, w)."""
    return rearrange(x, "(videos f) c h w -> videos c f h w", videos=videos)


def unfold(x: Tensor) -> Tensor:
    """Latents (videos, C, F, h, w) as (videos * F, C, h, w)."""
    return rearrange(x, "videos c f h w -> (videos f) c h w")


def one_per_video(values: Tensor, videos: int, frames: int) -> Tensor:
    """The first row of each video of ``values`` (videos * F, ...), (videos, ...) or (1, ...)."""
    if values.shape[0] == videos * frames:
        return values[::frames]
    if values.shape[0] in (1, videos):
        return values.expand(videos, *values.shape[1:])
    raise ValueError(
        f"A conditioning has {values.shape[0]} rows, but the batch has {videos} videos of {frames} "
        f"frames; use 1, {videos} or {videos * frames} rows."
    )


class NativeVideoUNet:
    """Mixin, left of a diffusers video UNet.

    Inputs and outputs are frames-as-batch latents (videos * F, 4, h, w), so that every core node
    (KSampler, VAE, previews, masks) works on them.
    """

    info: VideoInfo | None = None
    text_rows_per_video = 1
    """1 if the UNet repeats the text for each frame itself, 0 if it needs every row."""
    compute_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation: diffusers casts its time embedding to ``self.dtype``, which
        must not be the dtype that the weights are merely stored in.
        """
        return self.compute_dtype or super().dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        control: dict[str, list[Tensor]] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Model output (videos * F, 4, h, w) in ``x``'s dtype.

        ``timesteps`` and ``context`` (rows, L, D) have one row per frame, a video, or one for all.
        Other packs' DIFFUSION_MODEL wrappers run around it, as around core's own UNet.
        """
        from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **extra)

    def _predict(self, x, timesteps, context, control, transformer_options, **_extra) -> Tensor:
        videos, frames = split_rows(x.shape[0], transformer_options)
        if self.info is not None:
            self.info.check_frames(frames)
        if context is None:
            raise ValueError("The model got no text. Connect `positive` from a CLIP Text Encode.")
        self.compute_dtype = x.dtype
        if self.text_rows_per_video:
            context = one_per_video(context, videos, frames)
        residuals = self.residuals(control, videos, frames) if control else {}
        with core_patches(self, transformer_options, x.shape):
            predicted = super().forward(
                fold(x, videos),
                one_per_video(timesteps, videos, frames),
                encoder_hidden_states=context,
                return_dict=False,
                **residuals,
            )[0]
        return unfold(predicted)

    def residuals(self, control: dict[str, Any], videos: int, frames: int) -> dict[str, Any]:
        """Keyword arguments of the diffusers forward for ControlNet output ``control``.

        Raises ValueError: no ControlNet was made for this UNet.
        """
        name = self.info.name if self.info else type(self).__name__
        raise ValueError(
            f"'{name}' has no ControlNets. Remove Apply ControlNet, or use an SD 1.5 checkpoint "
            "with AnimateDiff Motion Module, which takes SD 1.5 ControlNets."
        )


class NativeUNet3D(NativeVideoUNet, UNet3DConditionModel):
    """ModelScopeT2V, ZeroScope and the embedded mini model."""


class NativeMotionUNet(NativeVideoUNet, UNetMotionModel):
    """Stable Diffusion 1.5 with a motion module."""

    text_rows_per_video = 0

    def _predict(self, x, timesteps, context, control, transformer_options, **extra) -> Tensor:
        videos, frames = split_rows(x.shape[0], transformer_options)
        if context is not None:
            context = every_row(context, videos, frames)
        layers = down_layers(self)
        added = read_control(control, len(layers)).inputs if control else (None,) * len(layers)
        with input_residuals(layers, added):
            return super()._predict(x, timesteps, context, control, transformer_options, **extra)

    def residuals(self, control: dict[str, Any], videos: int, frames: int) -> dict[str, Any]:
        """Keyword arguments of diffusers' forward for ControlNet output `control`.

        Raises ValueError when the residuals do not belong to this UNet or this batch.
        """
        residuals = read_control(control, len(down_layers(self)))
        check_rows(residuals, videos * frames)
        return residuals.unet_arguments(self.dtype)


def every_row(context: Tensor, videos: int, frames: int) -> Tensor:
    """Text (videos * F, L, D) from that, from one row per video, or from one row (1, L, D).

    Raises ValueError for another number of rows.
    """
    rows = videos * frames
    if context.shape[0] == rows:
        return context
    if context.shape[0] in (1, videos):
        return context.expand(videos, -1, -1).repeat_interleave(frames, dim=0)
    raise ValueError(
        f"A conditioning has {context.shape[0]} rows, but the batch has {videos} videos of "
        f"{frames} frames; use 1, {videos} or {rows} rows."
    )
