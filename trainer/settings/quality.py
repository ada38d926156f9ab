"""Training length as three choices, for people who do not want numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cards import Speed
from .base import ConfigError


@dataclass(frozen=True)
class QualityPreset:
    """``values`` are settings by dotted name; ``help`` says what to expect."""

    title: str
    help: str
    values: dict[str, Any]

    def about(self, speed: Speed | None) -> str:
        """What to expect of a run, with its time where the ``speed`` of the base model is known."""
        if speed is None:
            return self.help
        seconds = self.values["steps"] * speed.step + self.values["data.library_clips"] * speed.clip
        minutes = seconds / 60
        time = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
        return f"{self.help} About {time} on {speed.machine}."


QUALITY_PRESETS: dict[str, QualityPreset] = {
    "quick": QualityPreset(
        "Quick look",
        "150 training steps: shows whether the style comes through.",
        {
            "steps": 150, "preview.every": 25, "checkpoint.every": 50, "data.library_clips": 64,
            "preview.count": 2, "checkpoint.keep": 3,
        },
    ),
    "normal": QualityPreset(
        "Normal",
        "800 training steps: start here.",
        {
            "steps": 800, "preview.every": 50, "checkpoint.every": 100, "data.library_clips": 128,
            "preview.count": 3, "checkpoint.keep": 4,
        },
    ),
    "best": QualityPreset(
        "Best",
        "2000 training steps and more example clips: for a style that is worth the wait.",
        {
            "steps": 2000, "preview.every": 100, "checkpoint.every": 200,
            "data.library_clips": 256, "preview.count": 4, "checkpoint.keep": 6,
        },
    ),
}  # fmt: skip


def quality_preset(name: str) -> QualityPreset:
    """The preset of that name; ConfigError with the known ones for another."""
    if name not in QUALITY_PRESETS:
        known = ", ".join(QUALITY_PRESETS)
        raise ConfigError(f"`quality`={name!r} is not known; use {known}.")
    return QUALITY_PRESETS[name]
