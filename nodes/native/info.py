"""Facts about a text-to-video MODEL that the nodes need; attached to the MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...trainer.words import allowed_frames


@dataclass(frozen=True)
class VideoInfo:
    """One base model. Sizes in pixels; ``fps`` is frames per second of its clips.

    ``frames`` are the clip lengths it was made for, ``default_frames`` the one to offer first.
    ``scheduler_config`` is diffusers' dict (``beta_schedule``, ``beta_start``, ...).
    ``weight_files`` are the UNet's files on disk; they are read only when `base_hash` is.
    """

    family: str
    name: str
    frames: tuple[int, ...]
    default_frames: int
    width: int
    height: int
    fps: int
    licence: str
    scheduler_config: dict[str, Any]
    latent_factor: int = 8
    stride: int = 0
    """Frames in a latent frame after the first, where the LATENT of a clip has five axes (videos,
    C, f, h, w), as that of core's own video models. 0 where a clip is a batch of frames."""
    sides: int = 8
    """Sides of a clip are multiples of this many pixels."""
    part: str = ""
    """Which part of the noise levels it is for, such as "high noise"; empty for all."""
    weight_files: tuple[Path, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, family: Any, about: Mapping[str, Any], **own: Any) -> VideoInfo:
        """From the ``family``'s record and ``about``, a model's notes with what they leave out."""
        notes = {name: about[name] for name in ("name", "width", "height", "fps", "licence")}
        return cls(
            family=family.name, frames=family.frames, default_frames=about["frames"], **notes, **own
        )

    @property
    def windows(self) -> str:
        """The node for clips longer than the model's."""
        return "ComfyUI's 'WAN Context Windows'" if self.stride else "MCM Context Windows"

    @cached_property
    def base_hash(self) -> str:
        """SHA-256 (hex) of the weight files, as the trainer records it; "" without files."""
        from ...trainer.models.weights import file_hash

        return file_hash(self.weight_files) if self.weight_files else ""

    def check_frames(self, frames: int) -> None:
        """Raise ValueError when this model cannot make ``frames`` frames."""
        if frames not in self.frames:
            raise ValueError(
                f"`frames`={frames} is not supported by '{self.name}'; use "
                f"{allowed_frames(self.frames)}. For a longer clip add {self.windows}."
            )


def attach_info(base_model: Any, info: VideoInfo) -> None:
    """Attach ``info`` to ``base_model`` (a comfy BaseModel) and its UNet; all clones of its MODEL
    share it.
    """
    base_model.mcm_info = info
    base_model.diffusion_model.info = info


def video_info(model: Any) -> VideoInfo:
    """The info of MODEL ``model`` (a ModelPatcher).

    Raises ValueError for a MODEL that neither a loader of this pack made nor ComfyUI's own loader
    from a text-to-video Wan.
    """
    from .core_models import core_info

    info = getattr(getattr(model, "model", None), "mcm_info", None) or core_info(model)
    if info is None:
        raise ValueError(
            "This MODEL is not a text-to-video model of this pack. Connect the MODEL of "
            "'Load Video Model' (MCM_LoadVideoModel) or 'AnimateDiff Motion Module' "
            "(MCM_AnimateDiff), or a Wan from ComfyUI's 'Load Diffusion Model' (UNETLoader)."
        )
    return info
