"""The choosers of the Train tab: memory and quality."""

from __future__ import annotations

from typing import Any

from trainer.runs.card import card_gib
from trainer.settings import QUALITY_PRESETS
from trainer.settings.memory import CARDS, memory_settings

CPU = "cpu"
MEMORY = (CPU, *(str(size) for size in CARDS))
"""Keys of the presets by memory."""


def memory_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by memory."""
    return [("No card (CPU)" if key == CPU else f"{key} GB card", key) for key in MEMORY]


def memory_values(key: str, model: str) -> dict[str, Any]:
    """Settings of a memory preset; the mini model fits everywhere and keeps its own."""
    if key not in MEMORY:
        raise ValueError(f"`memory`={key!r} is not known; use {', '.join(MEMORY)}.")
    if key == CPU:
        return {"hardware.device": "cpu"}
    return {"hardware.device": "auto", **memory_settings(model, int(key))}


def memory_of_this_machine() -> str:
    """The largest preset that the graphics card holds; "cpu" without a card."""
    gib = card_gib()
    if gib is None:
        return CPU
    # Cards report a little less than their name says.
    fitting = [key for key in MEMORY[1:] if int(key) <= gib + 1]
    return fitting[-1] if fitting else MEMORY[1]


def quality_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by quality."""
    return [(preset.title, key) for key, preset in QUALITY_PRESETS.items()]
