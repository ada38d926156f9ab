"""Presets by graphics card, for 8, 12, 16, 24 and 48 GB.

They are starting points, to be changed setting by setting. ``python benchmarks/memory.py`` computes
the memory of each from its shapes; `python -m trainer preflight` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CardPreset:
    """Settings for a card of ``gigabytes``: clips of ``frames`` x ``height`` x ``width`` pixels,
    LoRA ``rank``, ``batch`` clips at a time and ``accumulation`` batches a step.

    ``memory`` is the setting of that name. ``frames_per_clip`` are decoded for the discriminator.
    """

    gigabytes: int
    frames: int
    height: int
    width: int
    rank: int
    batch: int
    accumulation: int
    memory: str = "lean"
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
            "optim.accumulation": self.accumulation,
            "memory": self.memory,
        }

    @property
    def title(self) -> str:
        """One line for a menu."""
        step = f"{self.batch} x {self.accumulation}" if self.accumulation > 1 else f"{self.batch}"
        return (
            f"{self.gigabytes} GB: {self.frames} frames of {self.width} x {self.height} px, "
            f"rank {self.rank}, {step} clips per step"
        )


CARD_PRESETS: dict[str, tuple[CardPreset, ...]] = {
    "modelscope": (
        CardPreset(8, 16, 256, 256, 32, batch=1, accumulation=4, memory="tight"),
        CardPreset(12, 16, 256, 256, 64, batch=2, accumulation=2),
        CardPreset(16, 16, 256, 256, 64, batch=4, accumulation=1),
        CardPreset(24, 24, 320, 576, 64, batch=2, accumulation=2),
        CardPreset(48, 24, 320, 576, 64, batch=4, accumulation=1, frames_per_clip=4),
    ),
    "animatediff": (
        CardPreset(8, 16, 384, 384, 16, batch=1, accumulation=4, memory="tight"),
        CardPreset(12, 16, 512, 512, 32, batch=1, accumulation=4),
        CardPreset(16, 16, 512, 512, 64, batch=2, accumulation=2),
        CardPreset(24, 16, 512, 512, 64, batch=4, accumulation=1),
        CardPreset(48, 24, 512, 768, 64, batch=4, accumulation=1, frames_per_clip=4),
    ),
}
"""By family, smallest card first."""
CARDS = tuple(sorted({p.gigabytes for presets in CARD_PRESETS.values() for p in presets}))


def card_presets(family: str) -> tuple[CardPreset, ...]:
    """The presets of a family of base models, smallest card first; ValueError for another name."""
    if family not in CARD_PRESETS:
        known = ", ".join(CARD_PRESETS)
        raise ValueError(f"`family`={family!r} has no card presets; use {known}.")
    return CARD_PRESETS[family]
