"""Finds what a base model's network predicts, from its scheduler config or its checkpoint.

Most models predict the noise ("epsilon"), some the velocity ("v_prediction"). The shapes of the
weights are the same, and confusing the two gives grey clips without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..diffusion.noise import EPSILON, VELOCITY
from .weights import ModelError, file_metadata

WORDS = {EPSILON: EPSILON, "eps": EPSILON, "v": VELOCITY, VELOCITY: VELOCITY}
"""The same by its names in headers (ModelSpec) and in diffusers' configs."""
MARKS = ("v_pred", "ztsnr")
"""Keys without data by which trainers mark a checkpoint that predicts v, and one with a zero
terminal SNR."""
SPEC = "modelspec.prediction_type"
YAML_V = re.compile(r"^\s*parameterization\s*:\s*[\"']?v[\"']?\s*$", re.MULTILINE)
YAML_ZERO = re.compile(r"^\s*(?:rescale_betas_zero_snr|zero_snr|ztsnr)\s*:\s*true\s*$",
                       re.MULTILINE | re.IGNORECASE)  # fmt: skip
MAX_YAML = 1 << 20


def config_prediction(config: Mapping[str, Any], path: Path) -> str:
    """One of `PREDICTIONS` by a scheduler config of model ``path``; "epsilon" where it says none.

    Raises ModelError for any other, and for a zero terminal SNR.
    """
    if config.get("rescale_betas_zero_snr"):
        raise _zero_snr(path, "rescale_betas_zero_snr")
    return _known(config.get("prediction_type") or EPSILON, path)


def checkpoint_prediction(path: Path, keys: Iterable[str]) -> str:
    """One of `PREDICTIONS` by what the checkpoint file ``path`` with ``keys`` says of itself: the
    keys `MARKS`, ModelSpec's header, or a .yaml file beside it.

    Raises ModelError as `config_prediction`.
    """
    marks, text = set(keys) & set(MARKS), _yaml(path)
    if "ztsnr" in marks or YAML_ZERO.search(text):
        raise _zero_snr(path, "ztsnr")
    said = _known(file_metadata(path).get(SPEC, "").strip().lower() or EPSILON, path)
    return VELOCITY if "v_pred" in marks or YAML_V.search(text) else said


def _known(told: object, path: Path) -> str:
    if told not in WORDS:
        raise ModelError(
            f"'{path}' predicts `{told}`; only noise (`epsilon`) and velocity (`v_prediction`) can "
            "be read. Use another checkpoint."
        )
    return WORDS[str(told)]


def _zero_snr(path: Path, mark: str) -> ModelError:
    return ModelError(
        f"'{path}' has a zero terminal SNR schedule (`{mark}`): its last noise level has no "
        "signal, and few-step sampling begins there. Use a model without it."
    )


def _yaml(path: Path) -> str:
    """The config that the authors of Stable Diffusion put beside a checkpoint; "" without one."""
    for suffix in (".yaml", ".yml"):
        file = path.with_suffix(suffix)
        if file.is_file() and file.stat().st_size <= MAX_YAML:
            return file.read_text(encoding="utf-8", errors="replace")
    return ""
