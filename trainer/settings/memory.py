"""How a run saves graphics memory: the choice `memory` and the settings that it implies."""

from __future__ import annotations

from typing import Any

from .records import record

GOVERNED = (
    "optim.optimizer", "optim.offload", "hardware.precision", "hardware.decode_precision",
    "hardware.gradient_checkpointing", "hardware.offload_idle", "hardware.channels_last",
)  # fmt: skip
"""Settings that follow `memory` unless they are set explicitly."""
_CHANGES: dict[str, dict[str, Any]] = {
    "lean": {"hardware.gradient_checkpointing": True},
    "tight": {"hardware.gradient_checkpointing": True, "optim.offload": True},
}


def memory_values(mode: str) -> dict[str, Any]:
    """The values of those settings under ``mode``; those it does not change keep their defaults."""
    return {name: record(name).default for name in GOVERNED} | _CHANGES.get(mode, {})
