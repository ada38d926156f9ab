"""Empty latents of videos, and the MODEL that knows how long one video is."""

from __future__ import annotations

from typing import Any

import torch

from .info import video_info

LATENT_FACTOR = 8


def empty_latents(
    width: int, height: int, frames: int, videos: int, model: Any = None
) -> dict[str, Any]:
    """LATENT with ``samples`` (videos * frames, 4, height / 8, width / 8) of zeros.

    Sizes in pixels. Raises ValueError for sizes or frames that MODEL ``model`` cannot make, and for
    several videos without it.
    """
    import comfy.model_management

    if videos > 1 and model is None:
        raise ValueError(
            f"`videos`={videos} needs `model`: connect the MODEL to Empty Latent Video, and its "
            "MODEL output to the sampler. Without it the sampler would see one long video."
        )
    info = video_info(model) if model is not None else None
    if info is not None and "context_handler" not in model.model_options:
        info.check_frames(frames)
    factor = info.latent_factor if info else LATENT_FACTOR
    for label, value in (("width", width), ("height", height)):
        if value % factor:
            raise ValueError(f"`{label}`={value} must be a multiple of {factor} pixels.")
    shape = (videos * frames, 4, height // factor, width // factor)
    device = comfy.model_management.intermediate_device()
    return {"samples": torch.zeros(shape, device=device), "mcm_frames": frames}


def model_for_frames(model: Any, frames: int) -> Any:
    """A clone of MODEL ``model`` that takes each ``frames`` rows of a latent batch as one video."""
    video_info(model)
    clone = model.clone()
    clone.model_options["transformer_options"]["mcm_frames"] = frames
    return clone
