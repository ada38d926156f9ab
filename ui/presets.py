"""The choosers of the Train tab: card and quality."""

from __future__ import annotations

from typing import Any

from trainer.cards import CARDS
from trainer.families import card_settings
from trainer.runs.card import card_gib
from trainer.settings import QUALITY_PRESETS

CPU = "cpu"
CARD_KEYS = (CPU, *(str(size) for size in CARDS))
"""Keys of the presets by card."""


def card_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by card."""
    return [("No card (CPU)" if key == CPU else f"{key} GB card", key) for key in CARD_KEYS]


def card_values(key: str, model: str) -> dict[str, Any]:
    """Settings of a card preset; the mini model fits everywhere and keeps its own."""
    if key not in CARD_KEYS:
        raise ValueError(f"`card`={key!r} is not known; use {', '.join(CARD_KEYS)}.")
    if key == CPU:
        return {"hardware.device": "cpu"}
    return {"hardware.device": "auto", **card_settings(model, int(key))}


def card_of_this_machine() -> str:
    """The largest preset that the graphics card holds; "cpu" without a card."""
    gib = card_gib()
    if gib is None:
        return CPU
    # Cards report a little less than their name says.
    fitting = [key for key in CARD_KEYS[1:] if int(key) <= gib + 1]
    return fitting[-1] if fitting else CARD_KEYS[1]


def quality_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by quality."""
    return [(preset.title, key) for key, preset in QUALITY_PRESETS.items()]
