"""What a preset changes of the defaults: those of the method, and of saving graphics memory."""

from __future__ import annotations

from typing import Any

from .records import record

_OFF_EXTRAS: dict[str, Any] = {
    "trajectory.real_min_timestep": 0,
    "trajectory.snr_power": 0.0,
    "trajectory.replay_probability": 0.0,
    "trajectory.few_step_bias": 0.0,
    "motion.target": "consistency",
    "motion.energy_weight": 0.0,
    "motion.anchor_weight": 0.0,
    "motion.self_anchor_weight": 0.0,
    "adversarial.mismatched_captions": False,
    "adversarial.caption_weight": 0.0,
    "adversarial.content_weight": 0.0,
    "adversarial.statistics_weight": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "recipe": {},
    # arXiv 2406.06890 and its reference code; lr 5e-6 is meant for long runs of large models.
    "paper": {
        **_OFF_EXTRAS,
        "trajectory.guidance_min": None,  # 5 to 15 for UNets, also for the mini model
        "trajectory.guidance_max": None,
        "trajectory.real_probability": 0.5,
        "motion.representation": "learned",
        "motion.huber_c": 0.001,
        "adversarial.weight_mode": "fixed",
        "adversarial.weight": 1.0,
        "lora.rank": 64,
        "optim.lr": 5e-6,
        "optim.schedule": "constant",
    },
    # Latent consistency distillation alone: the baseline, and the warm start that all styles share.
    "lcm": {
        **_OFF_EXTRAS,
        "trajectory.real_probability": 1.0,
        "motion.representation": "raw",
        "adversarial.weight": 0.0,
        "start_from": "none",
    },
}


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
