"""What the network of a base model predicts, by its scheduler config or its checkpoint.

Most models predict the noise ("epsilon"), some the velocity ("v_prediction"). Nothing in the
weights' shapes tells them apart, and the one read as the other gives grey mud without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .weights import ModelError, file_metadata

EPSILON, VELOCITY = "epsilon", "v_prediction"
PREDICTIONS = (EPSILON, VELOCITY)
MARKS = ("v_pred", "ztsnr")
"""Keys without data by which a checkpoint says that it predicts v, and has a zero terminal SNR."""
SPEC = "modelspec.prediction_type"
SPEC_WORDS = {"epsilon": EPSILON, "eps": EPSILON, "v": VELOCITY, "v_prediction": VELOCITY}
YAML_V = re.compile(r"^\s*parameterization\s*:\s*[\"']?v[\"']?\s*$", re.MULTILINE)
YAML_ZERO = re.compile(r"^\s*(?:rescale_betas_zero_snr|zero_snr|ztsnr)\s*:\s*true\s*$",
                       re.MULTILINE | re.IGNORECASE)  # fmt: skip
MAX_YAML = 1 << 20


def prediction_type(config: Mapping[str, Any], source: object) -> str:
    """One of `PREDICTIONS` by a scheduler config, "epsilon" where it does not say.

    Raises ModelError for any other prediction, and for a zero terminal SNR: its last timestep holds
    no signal, which few-step sampling starts from.
    """
    found = config.get("prediction_type", EPSILON)
    if found not in PREDICTIONS:
        raise ModelError(
            f"'{source}' has `prediction_type`={found!r}; supported are {' and '.join(PREDICTIONS)}"
            ". Choose a base model of one of these kinds."
        )
    if config.get("rescale_betas_zero_snr"):
        raise ModelError(
            f"'{source}' has a zero terminal SNR (`rescale_betas_zero_snr`, `ztsnr`): its last "
            "timestep holds no signal, so that few-step sampling cannot start there. Choose a base "
            "model without it."
        )
    return str(found)


def checkpoint_prediction(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """What the checkpoint file ``path`` with ``keys`` says of itself, in the words of a scheduler
    config: by the keys `MARKS`, by ModelSpec's header, or by a .yaml file beside it.

    Raises ModelError for a ModelSpec entry that means nothing.
    """
    marks, text = set(keys) & set(MARKS), _yaml(path)
    spec = file_metadata(path).get(SPEC, "").strip().lower()
    if spec and spec not in SPEC_WORDS:
        raise ModelError(
            f"`{SPEC}`={spec!r} in the header of '{path}' is unknown; known are epsilon and v. "
            "Choose another checkpoint."
        )
    velocity = "v_pred" in marks or SPEC_WORDS.get(spec) == VELOCITY or YAML_V.search(text)
    return {
        "prediction_type": VELOCITY if velocity else EPSILON,
        "rescale_betas_zero_snr": "ztsnr" in marks or bool(YAML_ZERO.search(text)),
    }


def _yaml(path: Path) -> str:
    """The config that the authors of Stable Diffusion put beside a checkpoint; "" without one."""
    for suffix in (".yaml", ".yml"):
        file = path.with_suffix(suffix)
        if file.is_file() and file.stat().st_size <= MAX_YAML:
            return file.read_text(encoding="utf-8", errors="replace")
    return ""
