"""What the consistency loss compares: motion representations of latents, and the losses on them."""

from __future__ import annotations

from .learned import MotionRepresentation, build_representation, representation_names
from .losses import (
    MOTION_LOSSES,
    huber,
    l2,
    low_pass_anchor,
    motion_energy_loss,
    motion_loss,
    self_anchor,
)
from .representations import REPRESENTATIONS

__all__ = [
    "MOTION_LOSSES",
    "REPRESENTATIONS",
    "MotionRepresentation",
    "build_representation",
    "huber",
    "l2",
    "low_pass_anchor",
    "motion_energy_loss",
    "motion_loss",
    "representation_names",
    "self_anchor",
]
