"""Settings of earlier versions: those of old ``config.toml`` files and command lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import ConfigError
from .records import RECIPE, record

CONSTANTS: dict[str, Any] = {
    "trajectory.timestep_scaling": 4.0,
    "trajectory.sigma_data": 0.5,
    "motion.head_ema": 0.95,
    "adversarial.ratio_ema": 0.9,
    "adversarial.r1_every": 8,
    "adversarial.head_channels": 64,
    "optim.betas": (0.9, 0.99),
}
"""Former settings that are constants now, with the only value that an old file may have."""
RETIRED = (*CONSTANTS, "lora.alpha", "init_lora", "warm_start")


def of_today(given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Settings by name, with old names converted to current ones.

    Raises ConfigError, which begins with ``where``, for a setting that no longer exists.
    """
    values = {name.removeprefix(RECIPE): value for name, value in given.items()}
    for name, constant in CONSTANTS.items():
        if name in values and _numbers(values.pop(name)) != _numbers(constant):
            shown = constant if not isinstance(constant, tuple) else list(constant)
            raise ConfigError(
                f"{where}`{name}` is no longer a setting: it is always {shown}. Remove it."
            )
    if "lora.alpha" in values:
        rank = values.get("lora.rank", record("lora.rank").default)
        if _numbers(values.pop("lora.alpha")) != _numbers(rank):
            raise ConfigError(
                f"{where}`lora.alpha` is no longer a setting: it always equals `lora.rank`, here "
                f"{rank}. Remove it."
            )
    return _with_start(values)


def _with_start(values: dict[str, Any]) -> dict[str, Any]:
    lora, warm = values.pop("init_lora", None), values.pop("warm_start", None)
    if lora is not None and str(lora).strip().lower() not in ("", "none"):
        values["start_from"] = str(lora)
    elif warm is not None:
        values["start_from"] = "auto" if str(warm).strip().lower() in ("true", "1") else "none"
    return values


def _numbers(value: Any) -> list[float] | None:
    """The numbers of a setting, also where they come as text."""
    if isinstance(value, str):
        value = value.strip(" ()[]").split(",")
    try:
        return [float(part) for part in (value if isinstance(value, list | tuple) else [value])]
    except (TypeError, ValueError):
        return None
