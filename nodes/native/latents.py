"""LATENTs of videos: frames as a batch of images, that know how long one video is.

KSampler and its like hand on only the tensor of a LATENT, so the tensor itself carries its frames.
What samples a MODEL of this pack reads them, and refuses LATENTs of another kind of model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .info import VideoInfo, video_info

LATENT_FACTOR = 8
KEEPING = {
    Tensor.to,
    Tensor.cpu,
    Tensor.cuda,
    Tensor.float,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.type,
    Tensor.clone,
    Tensor.contiguous,
    Tensor.detach,
    Tensor.repeat,
    torch.clone,
    torch.cat,
    torch.nn.functional.interpolate,
}
"""What may happen to latents between two nodes with whole videos staying whole."""


class VideoLatents(Tensor):
    """Latents (videos * ``frames``, C, h, w). Other operations than `KEEPING` give plain tensors,
    so nothing of it reaches a network.
    """

    frames: int

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        if func not in KEEPING or not isinstance(out, Tensor):
            return out
        tensors = args[0] if func is torch.cat else args[:1]
        found = {frames_of(tensor) for tensor in tensors}
        return video_latents(out, found.pop()) if len(found) == 1 else out

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Stored as a plain tensor, which can be read without this pack."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def video_latents(samples: Tensor, frames: int | None) -> Tensor:
    """`samples` (videos * frames, C, h, w) that know their `frames`; as they are for None, and for
    rows that are no whole videos.
    """
    if not frames or samples.ndim != 4 or samples.shape[0] % frames:
        return samples
    known = samples.as_subclass(VideoLatents)
    known.frames = frames
    return known


def frames_of(samples: Any) -> int | None:
    """Frames of one video of latents; None where they do not say."""
    return getattr(samples, "frames", None) if isinstance(samples, VideoLatents) else None


def empty_latents(
    width: int, height: int, frames: int, videos: int, model: Any = None
) -> dict[str, Any]:
    """LATENT with ``samples`` (videos * frames, 4, height / 8, width / 8) of zeros.

    Sizes in pixels. Raises ValueError for sizes or frames that MODEL ``model`` cannot make.
    """
    import comfy.model_management

    info = video_info(model) if model is not None else None
    if info is not None and "mcm_context" not in model.model_options:
        info.check_frames(frames)
    factor = info.latent_factor if info else LATENT_FACTOR
    for label, value in (("width", width), ("height", height)):
        if value % factor:
            raise ValueError(f"`{label}`={value} must be a multiple of {factor} pixels.")
    shape = (videos * frames, 4, height // factor, width // factor)
    device = comfy.model_management.intermediate_device()
    return {"samples": video_latents(torch.zeros(shape, device=device), frames)}


def model_for_frames(model: Any, frames: int) -> Any:
    """A clone of MODEL ``model`` that takes each ``frames`` rows of a latent batch as one video,
    also where the LATENT does not say (VAE Encode, nodes of other packs).
    """
    video_info(model)
    clone = model.clone()
    clone.model_options["transformer_options"]["mcm_frames"] = frames
    return clone


def sample_videos(executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **named: Any):
    """Around ``CFGGuider.outer_sample``: the LATENT's frames, the MODEL's, and the noise agree.

    Raises ValueError, before the model is loaded, for latents of another kind of model and for
    frames that the two disagree on.
    """
    guider = executor.class_obj
    info = video_info(guider.model_patcher)
    check_latents(latent_image, info, guider.model_patcher.model.latent_format.latent_channels)
    options = guider.model_options["transformer_options"]
    frames = agreed_frames(frames_of(latent_image), options.get("mcm_frames"), len(latent_image))
    options["mcm_frames"] = frames
    drawn = getattr(noise, "drawn_by", None)
    if drawn is not None:  # MCM Noise could not know the MODEL
        noise = drawn.draw(noise.shape, frames)
    plain = latent_image.as_subclass(Tensor)
    return video_latents(executor(noise, plain, *args, **named), frames)


def check_latents(latent_image: Tensor, info: VideoInfo, channels: int) -> None:
    """Raise ValueError unless `latent_image` is (rows, channels, h, w)."""
    if latent_image.ndim != 4 or latent_image.shape[1] != channels:
        raise ValueError(
            f"This LATENT has the shape {tuple(latent_image.shape)}, which belongs to another kind "
            f"of model. '{info.name}' takes frames as a batch of images: (frames, {channels}, "
            f"height / {info.latent_factor}, width / {info.latent_factor}). Connect 'Empty Latent "
            "Video', or VAE Encode with this model's VAE."
        )


def agreed_frames(of_latents: int | None, of_model: int | None, rows: int) -> int:
    """Frames of one video from what the LATENT and the MODEL say; `rows` where neither does.

    Raises ValueError where they differ, or where `rows` is no whole number of videos.
    """
    if of_latents and of_model and of_latents != of_model:
        raise ValueError(
            f"The LATENT holds videos of {of_latents} frames, but the MODEL was set to {of_model} "
            "by another 'Empty Latent Video'. Connect LATENT and MODEL of the same node."
        )
    frames = of_latents or of_model or rows
    if rows % frames:
        raise ValueError(
            f"The LATENT has {rows} frames, which is not a whole number of videos of {frames}. "
            "Connect LATENT and MODEL of the same 'Empty Latent Video', or a MODEL that did not "
            "pass through one."
        )
    return frames


def split_videos(rows: int, frames: int) -> Iterable[range]:
    """The rows of each video of a batch."""
    return (range(start, start + frames) for start in range(0, rows, frames))
