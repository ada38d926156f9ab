"""How a run saves graphics memory: one choice, `memory`, for the settings that it stands for."""

from __future__ import annotations

from typing import Any

from .records import record

GOVERNED = (
    "optim.optimizer", "optim.offload", "hardware.precision", "hardware.decode_precision",
    "hardware.gradient_checkpointing", "hardware.offload_idle", "hardware.channels_last",
)  # fmt: skip
"""Settings that follow `memory` unless they are set themselves."""
_CHANGES: dict[str, dict[str, Any]] = {
    "lean": {"hardware.gradient_checkpointing": True},
    "tight": {"hardware.gradient_checkpointing": True, "optim.offload": True},
}


def memory_values(mode: str) -> dict[str, Any]:
    """The governed settings under ``mode``; those it does not change have their defaults."""
    return {name: record(name).default for name in GOVERNED} | _CHANGES.get(mode, {})
