"""Presets by graphics memory: what a card of 8, 12, 16, 24 or 48 GB can train.

They are starting points, to be changed setting by setting. ``python benchmarks/memory.py`` computes
the memory of each from its shapes; `python -m trainer preflight` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryPreset:
    """Settings for a card of ``gigabytes``: clips of ``frames`` x ``height`` x ``width`` pixels,
    LoRA ``rank``, ``batch`` clips at a time and ``accumulation`` batches a step.

    All recompute activations in the backward pass. ``offload`` keeps the optimizer in main memory.
    ``frames_per_clip`` are decoded for the discriminator.
    """

    gigabytes: int
    frames: int
    height: int
    width: int
    rank: int
    batch: int
    accumulation: int
    offload: bool = False
    frames_per_clip: int = 2

    @property
    def settings(self) -> dict[str, Any]:
        """The preset as settings by dotted name."""
        return {
            "data.frames": self.frames,
            "data.height": self.height,
            "data.width": self.width,
            "data.batch_size": self.batch,
            "data.frames_per_clip": self.frames_per_clip,
            "lora.rank": self.rank,
            "lora.alpha": float(self.rank),
            "optim.accumulation": self.accumulation,
            "optim.optimizer": "adamw",
            "optim.offload": self.offload,
            "hardware.precision": "auto",
            "hardware.decode_precision": "auto",
            "hardware.gradient_checkpointing": True,
            "hardware.offload_idle": True,
        }

    @property
    def title(self) -> str:
        """One line for a menu."""
        step = f"{self.batch} x {self.accumulation}" if self.accumulation > 1 else f"{self.batch}"
        return (
            f"{self.gigabytes} GB: {self.frames} frames of {self.width} x {self.height} px, "
            f"rank {self.rank}, {step} clips a step"
        )


MEMORY_PRESETS: dict[str, tuple[MemoryPreset, ...]] = {
    "modelscope": (
        MemoryPreset(8, 16, 256, 256, 32, batch=1, accumulation=4, offload=True),
        MemoryPreset(12, 16, 256, 256, 64, batch=2, accumulation=2),
        MemoryPreset(16, 16, 256, 256, 64, batch=4, accumulation=1),
        MemoryPreset(24, 24, 320, 576, 64, batch=2, accumulation=2),
        MemoryPreset(48, 24, 320, 576, 64, batch=4, accumulation=1, frames_per_clip=4),
    ),
    "animatediff": (
        MemoryPreset(8, 16, 384, 384, 16, batch=1, accumulation=4, offload=True),
        MemoryPreset(12, 16, 512, 512, 32, batch=1, accumulation=4),
        MemoryPreset(16, 16, 512, 512, 64, batch=2, accumulation=2),
        MemoryPreset(24, 16, 512, 512, 64, batch=4, accumulation=1),
        MemoryPreset(48, 24, 512, 768, 64, batch=4, accumulation=1, frames_per_clip=4),
    ),
}
"""By family, smallest card first."""
CARDS = tuple(sorted({p.gigabytes for presets in MEMORY_PRESETS.values() for p in presets}))


def memory_presets(family: str) -> tuple[MemoryPreset, ...]:
    """The presets of a family of base models, smallest card first; ValueError for another name."""
    if family not in MEMORY_PRESETS:
        known = ", ".join(MEMORY_PRESETS)
        raise ValueError(f"`family`={family!r} has no memory presets; use {known}.")
    return MEMORY_PRESETS[family]


def memory_settings(model: str, gigabytes: int | None) -> dict[str, Any]:
    """Settings, by dotted name, for base model ``model`` on a card of ``gigabytes``.

    ``model`` is a path, or the bare name of a family in place of one. Empty without a card size,
    and for a model that brings its own settings, such as the embedded one: it fits everywhere.
    Raises ValueError for a size without a preset, ModelError for a model that is not there.
    """
    if gigabytes is None:
        return {}
    from ..families import family_of, resolve_model

    path = None if model in MEMORY_PRESETS else resolve_model(model)
    presets = memory_presets(model if path is None else family_of(path).name)
    if gigabytes not in CARDS:
        raise ValueError(
            f"`memory`={gigabytes} GB has no preset; use {', '.join(map(str, CARDS))}: the largest "
            "that is not above your card's memory."
        )
    brings_its_own = path is not None and (path / "mcm.json").is_file()
    chosen = next(p for p in presets if p.gigabytes == gigabytes)
    return {} if brings_its_own else chosen.settings
