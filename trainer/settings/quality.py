"""How long and how carefully a run trains, as three choices for people who want no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class QualityPreset:
    """``values`` are settings by dotted name; ``help`` says what to expect."""

    title: str
    help: str
    values: dict[str, Any]


QUALITY_PRESETS: dict[str, QualityPreset] = {
    "quick": QualityPreset(
        "Quick look",
        "150 steps: shows whether the style comes through. Minutes on the mini model.",
        {
            "steps": 150, "preview.every": 25, "checkpoint.every": 50, "data.library_clips": 64,
            "preview.count": 2, "checkpoint.keep": 3,
        },
    ),
    "good": QualityPreset(
        "Good",
        "800 steps: the place to start. About ten minutes on the mini model.",
        {
            "steps": 800, "preview.every": 50, "checkpoint.every": 100, "data.library_clips": 128,
            "preview.count": 3, "checkpoint.keep": 4,
        },
    ),
    "thorough": QualityPreset(
        "Thorough",
        "2000 steps and more motion from the teacher: for a style that is worth the wait.",
        {
            "steps": 2000, "preview.every": 100, "checkpoint.every": 200,
            "data.library_clips": 256, "preview.count": 4, "checkpoint.keep": 6,
        },
    ),
}  # fmt: skip
