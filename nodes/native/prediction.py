"""What the network of a MODEL predicts: noise ("epsilon") or velocity ("v_prediction").

ComfyUI tells the two apart for some kinds of models only; a Stable Diffusion 1.5 that predicts v is
loaded as one that predicts noise. So its file is asked too, where the MODEL knows which it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...trainer.models.checkpoint import refuse_few_step
from ...trainer.models.prediction import (
    EPSILON,
    VELOCITY,
    checkpoint_prediction,
    prediction_type,
)
from ...trainer.models.weights import FILE_SUFFIXES, file_keys
from .notices import tell

PATCH = "model_sampling"
KINDS = {EPSILON: "EPS", VELOCITY: "V_PREDICTION"}
"""diffusers' name -> the class in `comfy.model_sampling`."""


def prediction_of(model: Any) -> str:
    """What the sampling of MODEL `model` takes the network's output for, nodes upstream included.

    Raises ValueError for anything but noise and velocity.
    """
    import comfy.model_sampling as core

    sampling = model.get_model_object(PATCH)
    others = tuple(getattr(core, name) for name in ("EDM", "X0") if hasattr(core, name))
    if not isinstance(sampling, others):
        if isinstance(sampling, core.V_PREDICTION):
            return VELOCITY
        if isinstance(sampling, core.EPS):
            return EPSILON
    kind = next(k.__name__ for k in type(sampling).__mro__ if "calculate_denoised" in vars(k))
    raise ValueError(
        f"The MODEL is sampled as {kind}; only eps and v_prediction are supported. "
        "Remove the model sampling node before this one, or choose another checkpoint."
    )


def image_prediction(model: Any) -> str:
    """The same for MODEL `model` of an image checkpoint, where its file may know better.

    Raises ModelError for a file of a kind that cannot be used (zero terminal SNR, LCM).
    """
    own, path = prediction_of(model), checkpoint_path(model)
    if path is None:
        return own
    keys = file_keys(path)
    refuse_few_step(keys, path)
    said = prediction_type(checkpoint_prediction(path, keys), path)
    if said == own or PATCH in model.object_patches:  # the user's own node decides
        return own
    tell(
        f"'{path.name}' says that it predicts {said}, ComfyUI loaded it as {own}: the video model "
        f"is sampled as {said}. For images add ModelSamplingDiscrete ({said})."
    )
    return said


def checkpoint_path(model: Any) -> Path | None:
    """The file that MODEL `model` was loaded from; None where ComfyUI (before 0.15) or another
    pack's loader does not say.
    """
    again = getattr(model, "cached_patcher_init", None)
    path = again[1][0] if again and again[1] else None
    if not isinstance(path, (str, Path)) or Path(path).suffix.lower() not in FILE_SUFFIXES:
        return None
    return Path(path) if Path(path).is_file() else None


def only_prediction(model: Any) -> bool:
    """Whether the model sampling node upstream of MODEL `model` changes the prediction alone, not
    the noise levels.
    """
    patched, own = model.object_patches[PATCH], model.model.model_sampling
    return patched.sigmas.shape == own.sigmas.shape and torch.equal(
        patched.sigmas.cpu(), own.sigmas.cpu()
    )
