"""The settings that a few-step LoRA recommends in its header (``mcm.*``), validated.

The header comes with a downloaded file: a value is one of a known kind and within its range, or it
is an error that names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..diffusion.noise import FLOW, PREDICTIONS
from .metadata import MCM_VERSION, LoraCard
from .pairs import LoraError

PREFIX = "mcm."
SAMPLER = "lcm"
MOST_LETTERS = 1000
MOST_STEPS = 1000
LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, MOST_STEPS),
    "guidance_scale": (0.0, 100.0),
    "strength": (0.0, 10.0),
    "timestep_scaling": (0.01, 1000.0),
    "sigma_data": (0.01, 10.0),
    "original_steps": (1, MOST_STEPS),
    "shift": (0.01, 100.0),
    "low": (0.0, 1.0),
    "frames": (1, 1024),
    "width": (8, 8192),
    "height": (8, 8192),
    "fps": (1, 240),
}
"""Lowest and highest value; whole numbers where the bounds are."""


@dataclass(frozen=True)
class Recommended:
    """The recommended settings of a few-step LoRA. None for sizes that its header does not
    state.
    """

    steps: int = LoraCard.steps
    steps_allowed: tuple[int, ...] = LoraCard.steps_allowed
    guidance_scale: float = LoraCard.guidance_scale
    strength: float = LoraCard.strength
    timestep_scaling: float = LoraCard.timestep_scaling
    sigma_data: float = LoraCard.sigma_data
    original_steps: int = LoraCard.original_steps
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: int | None = None
    shift: float | None = None
    """Of a flow's levels; None for other models."""
    low: float | None = None
    """The lowest level that its base model's network works at, where that is a part of them."""
    part: str = ""
    """What that part is called."""
    trigger: str = ""
    prediction_type: str = LoraCard.prediction_type
    """What its base model predicts."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of `sample_lcm` that must be those of the distillation."""
        names = ("timestep_scaling", "sigma_data", "original_steps")
        return {name: getattr(self, name) for name in names}


def read_recommended(metadata: Mapping[str, str], name: str) -> Recommended:
    """The recommendation in the header ``metadata`` of the LoRA file ``name``.

    Raises LoraError for a value that is not a number, out of range, or from a newer version.
    """
    told = {key[len(PREFIX) :]: text for key, text in metadata.items() if key.startswith(PREFIX)}
    values: dict[str, Any] = {
        key: _number(key, told[key], limits, name) for key, limits in LIMITS.items() if key in told
    }
    if values.get("strength") == 0:
        raise _refuse("strength", told["strength"], "a number above 0", name)
    _check_words(told, name)
    if "steps_allowed" in told:
        values["steps_allowed"] = _steps(told["steps_allowed"], name)
    for key in ("trigger", "prediction_type", "part"):
        if key in told:
            values[key] = told[key]
    found = Recommended(**values)
    if found.steps > found.original_steps:
        allowed = f"at most `mcm.original_steps`={found.original_steps}"
        raise _refuse("steps", str(found.steps), allowed, name)
    return found


def _number(key: str, text: str, limits: tuple[float, float], name: str) -> float:
    low, high = limits
    whole = isinstance(low, int)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # NaN is in no range
        kind = "a whole number" if whole else "a number"
        raise _refuse(key, text, f"{kind} from {low:g} to {high:g}", name)
    return value


def _steps(text: str, name: str) -> tuple[int, ...]:
    parts = [_number("steps_allowed", part, (1, MOST_STEPS), name) for part in text.split(",")]
    return tuple(int(part) for part in parts)


def _check_words(told: Mapping[str, str], name: str) -> None:
    version = told.get("version", MCM_VERSION)
    if not version.isdecimal() or int(version) < 1:
        raise _refuse("version", version, "a whole number", name)
    if int(version) > int(MCM_VERSION):
        raise LoraError(
            f"'{name}' was made by a newer version of this pack (`mcm.version`={version}, known is "
            f"{MCM_VERSION}). Update this pack."
        )
    for key, allowed in (("sampler", (SAMPLER,)), ("prediction_type", (*PREDICTIONS, FLOW))):
        if told.get(key, allowed[0]) not in allowed:
            raise _refuse(key, told[key], " or ".join(allowed), name)
    for key in ("trigger", "part"):
        if len(told.get(key, "")) > MOST_LETTERS:
            raise _refuse(key, told[key], f"at most {MOST_LETTERS} letters", name)


def _refuse(key: str, got: str, allowed: str, name: str) -> LoraError:
    return LoraError(
        f"`{PREFIX}{key}`={got[:60]!r} in the metadata of '{name}' must be {allowed}. Export the "
        "LoRA again, or remove the entry."
    )
