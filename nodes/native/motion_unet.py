"""AnimateDiff's UNet with ComfyUI's interface: text per frame, ControlNet and T2I-Adapter
residuals.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNetMotionModel
from torch import Tensor

from .blocks import down_layers
from .control import check_rows, input_residuals, read_control
from .unet import NativeVideoUNet, split_rows


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
