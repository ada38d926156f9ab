"""LATENTs of videos: a batch of frames that stores how long one video is.

KSampler and similar nodes pass on only the tensor of a LATENT, so the tensor itself stores the
number of frames. What samples a MODEL of this pack reads them, and refuses LATENTs of another kind
of model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .info import VideoInfo, video_info
from .notices import tell

LATENT_FACTOR = 8
WINDOWS = frozenset(("mcm_context", "context_handler"))
"""What a MODEL's options hold when it makes clips longer than its own: our windows, core's."""
_KEEPING = """
    to cpu cuda float half bfloat16 type clone contiguous detach copy_ repeat cat concat
    interpolate pad flip rot90 roll narrow __getitem__ index_select gather
    reshape view flatten unflatten movedim permute transpose squeeze unsqueeze expand
    add sub rsub mul div true_divide neg abs pow sqrt lerp where clamp nan_to_num normalize
    add_ sub_ mul_ div_ clamp_ lerp_ __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__
    __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ __neg__ __pow__
"""
KEEPING = frozenset(_KEEPING.split())
"""Torch functions that nodes use to change latents; their results keep the number of frames."""
JOINING = ("cat", "concat")


class VideoLatents(Tensor):
    """Latents (videos * ``frames``, C, h, w), and what is made of them on the way from node to
    node (`frames_of` says whether it is whole videos). Other operations than `KEEPING`, those of
    networks among them, give plain tensors.
    """

    frames: int

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        if func.__name__ not in KEEPING or not isinstance(out, Tensor):
            return out
        joined = func.__name__ in JOINING
        every = args[0] if joined else [*args, *(kwargs or {}).values()]
        known = {each.frames for each in every if isinstance(each, VideoLatents)}
        if len(known) != 1 or (joined and not all(map(frames_of, every))):
            return out
        out = out.as_subclass(VideoLatents)
        out.frames = known.pop()
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Stored as a plain tensor, which can be read without this pack."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def video_latents(samples: Tensor, frames: int | None) -> Tensor:
    """`samples` (videos * frames, C, h, w) with their `frames` stored; unchanged for None, and for
    rows that are not whole videos.
    """
    if not frames or samples.ndim != 4 or samples.shape[0] % frames:
        return samples
    known = samples.as_subclass(VideoLatents)
    known.frames = frames
    return known


def frames_of(samples: Any) -> int | None:
    """Frames of one video of latents; None if not stored, or if the rows are not whole videos."""
    if not isinstance(samples, VideoLatents) or samples.ndim != 4:
        return None
    return None if samples.shape[0] % samples.frames else samples.frames


def empty_latents(
    width: int, height: int, frames: int, videos: int, model: Any = None
) -> dict[str, Any]:
    """LATENT with ``samples`` (videos * frames, 4, height / 8, width / 8) of zeros; for core's own
    video models (videos, 16, (frames - 1) / 4 + 1, height / 8, width / 8).

    Sizes in pixels. Raises ValueError for sizes or frames that MODEL ``model`` cannot make.
    """
    import comfy.model_management

    info = video_info(model) if model is not None else None
    windows = model is not None and WINDOWS & set(model.model_options)
    if info is not None and not windows:
        info.check_frames(frames)
    factor = info.latent_factor if info else LATENT_FACTOR
    sides = info.sides if info else LATENT_FACTOR
    for label, value in (("width", width), ("height", height)):
        if value % sides:
            raise ValueError(f"`{label}`={value} must be a multiple of {sides} pixels.")
    device = comfy.model_management.intermediate_device()
    side = (height // factor, width // factor)
    if info is None or not info.stride:
        latents = torch.zeros((videos * frames, 4, *side), device=device)
        return {"samples": video_latents(latents, frames)}
    later, rest = divmod(frames - 1, info.stride)
    if rest:
        raise ValueError(
            f"`frames`={frames} cannot be made by '{info.name}': use {later * info.stride + 1} or "
            f"{(later + 1) * info.stride + 1} (a multiple of {info.stride}, and one)."
        )
    channels = model.model.latent_format.latent_channels
    return {"samples": torch.zeros((videos, channels, later + 1, *side), device=device)}


def model_for_frames(model: Any, frames: int) -> Any:
    """A clone of MODEL ``model`` that takes each ``frames`` rows of a latent batch as one video,
    also where the LATENT does not say (VAE Encode, nodes of other packs).
    """
    clone = model.clone()
    if video_info(model).stride:  # its LATENTs say it themselves
        return clone
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
    refuse_core_windows(guider.model_options)
    options = guider.model_options["transformer_options"]
    told = frames_of(latent_image), options.get("mcm_frames")
    frames = agreed_frames(*told, len(latent_image))
    if not any(told) and "mcm_context" not in guider.model_options:
        remark_on_guess(frames, info)
    options["mcm_frames"] = frames
    drawn = getattr(noise, "drawn_by", None)
    if drawn is not None:  # MCM Noise did not have the MODEL
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

    Raises ValueError where they differ, or if `rows` is not a whole number of videos.
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


def remark_on_guess(frames: int, info: VideoInfo) -> None:
    """Show a notice that latents without a stored number of frames are sampled as one long video,
    if they could also be several.
    """
    videos, rest = divmod(frames, info.default_frames)
    if videos > 1 and not rest:
        tell(
            f"This LATENT has {frames} frames and does not store how long one video is, so it is "
            f"sampled as one video. If they are {videos} videos of {info.default_frames} frames, "
            "connect the MODEL output of 'Empty Latent Video' here, or to the guider."
        )


def refuse_core_windows(options: dict[str, Any]) -> None:
    """Raise ValueError for the context windows of ComfyUI's own nodes in model ``options``."""
    if options.get("context_handler") is not None:
        raise ValueError(
            "ComfyUI's own context windows do not work with this pack's clips, which are batches "
            "of frames. Use the node 'MCM Context Windows' instead."
        )


def split_videos(rows: int, frames: int) -> Iterable[range]:
    """The rows of each video of a batch."""
    return (range(start, start + frames) for start in range(0, rows, frames))
