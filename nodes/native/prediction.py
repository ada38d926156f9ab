"""What the network of a MODEL predicts: noise ("epsilon") or velocity ("v_prediction").

ComfyUI distinguishes the two for some kinds of models only; it loads a Stable Diffusion 1.5 that
predicts v as one that predicts noise. So its file is checked too, if the MODEL stores its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...trainer.diffusion.noise import PREDICTIONS
from ...trainer.models.checkpoint import refuse_few_step
from ...trainer.models.prediction import checkpoint_prediction
from ...trainer.models.weights import FILE_SUFFIXES, file_keys
from .notices import tell
from .sampling import prediction_of

PATCH = "model_sampling"


def image_prediction(model: Any) -> str:
    """What the network of MODEL `model`, an image model, predicts: as ComfyUI samples it, nodes
    upstream included, or as its file says, which is more reliable.

    Raises ValueError for another prediction, ModelError for a file of a kind that cannot be used
    (zero terminal SNR, LCM).
    """
    own, path = PREDICTIONS[prediction_of(model) == "V_PREDICTION"], checkpoint_path(model)
    if path is None:
        return own
    keys = file_keys(path)
    refuse_few_step(keys, path)
    said = checkpoint_prediction(path, keys)
    if said == own or PATCH in model.object_patches:  # the user's own node decides
        return own
    tell(
        f"'{path.name}' says that it predicts {said}, but ComfyUI loaded it as {own}. The video "
        f"model is sampled as {said}. For images, add ModelSamplingDiscrete ({said})."
    )
    return said


def checkpoint_path(model: Any) -> Path | None:
    """The file that MODEL `model` was loaded from; None if ComfyUI (before 0.15) or another pack's
    loader does not store it.
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
