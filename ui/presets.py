"""The choosers of the Train tab: memory and quality."""

from __future__ import annotations

import os
from typing import Any

from trainer.settings import QUALITY_PRESETS

MEMORY: dict[str, dict[str, Any]] = {"cpu": {}, "8": {}, "12": {}, "16": {}, "24": {}}


def memory_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by memory."""
    return [("CPU" if key == "cpu" else f"{key} GB graphics card", key) for key in MEMORY]


def memory_values(key: str, model: str) -> dict[str, Any]:
    """Settings of a memory preset; the mini model fits everywhere and keeps its own."""
    if key not in MEMORY:
        raise ValueError(f"`memory`={key!r} is not known; use {', '.join(MEMORY)}.")
    return {} if model == "mini" else MEMORY[key]


def quality_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by quality."""
    return [(preset.title, key) for key, preset in QUALITY_PRESETS.items()]


def memory_of_this_machine() -> str:
    """The largest memory preset that the graphics card holds; "cpu" without one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    fitting = [key for key in MEMORY if key != "cpu" and int(key) <= gib + 0.7]
    return fitting[-1] if fitting else "8"
