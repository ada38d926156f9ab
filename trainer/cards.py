"""What a family of base models says of graphics cards: presets by memory, and how long it takes.

Presets are starting points, to be changed setting by setting. ``python benchmarks/memory.py``
computes the memory of each from its shapes; `python -m trainer preflight` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .files import GIB

CARDS = (8, 12, 16, 24, 48)
"""Sizes of cards in GB; every family has a preset for each."""


@dataclass(frozen=True)
class CardPreset:
    """Settings for a card of ``gigabytes``: clips of ``frames`` x ``height`` x ``width`` pixels,
    LoRA ``rank``, ``batch`` clips at a time and ``accumulation`` batches a step.

    ``memory`` is the setting of that name. ``frames_per_clip`` are decoded for the discriminator,
    ``swapped`` blocks wait in main memory.
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
    swapped: int = 0

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
            "hardware.blocks_to_swap": self.swapped,
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


@dataclass(frozen=True)
class Speed:
    """Seconds of a training ``step`` of four clips and of an example ``clip`` on ``machine``.

    From benchmarks/results/gpu.json (one clip a step, recomputing, and a clip in 50 steps) and
    quality.md (the embedded model).
    """

    step: float
    clip: float
    machine: str


BUNDLED_SPEED = Speed(0.7, 0.0, "two processor cores")
"""Of the embedded model, whose example clips come with it."""


def card_gib() -> float | None:
    """Memory of the first NVIDIA card in GiB; None without one that can be used."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GIB
