"""May this file be a few-step LoRA of a model? The one check of sampler, trainer and nodes."""

from __future__ import annotations

from .formats import LoraFile
from .match import Model, describe_base, fit_pairs, match, pair_widths
from .pairs import LoraError, LoraPair, weight_shapes


def fit_few_step(
    found: LoraFile, model: Model, family: str, model_name: str, file_name: str
) -> dict[str, LoraPair]:
    """The pairs of ``found`` by module path of ``model`` (a UNet, or its `weight_shapes`), all of
    them.

    A file that says nothing of itself, as the official ones do, must cover every module that they
    cover. Raises LoraError for a LoRA of another family, of other shapes, or for a part of one; the
    message says which base it wants.
    """
    wanted = found.metadata.get("mcm.family")
    if wanted and wanted != family:
        base = found.metadata.get("mcm.base_model", "unknown")
        raise LoraError(
            f"'{file_name}' is a LoRA for '{wanted}' (base model '{base}'), but the MODEL is "
            f"'{model_name}' of family '{family}'. Load its base model, or another LoRA."
        )
    shapes = weight_shapes(model)
    pairs = fit_pairs(found.pairs, shapes, metadata=found.metadata)
    report = match(pairs, shapes)
    if not wanted and not report.complete:
        raise LoraError(
            f"'{file_name}' covers {len(report.matched)} layers of the MODEL and leaves out "
            f"{len(report.missing)}: it is made for {describe_base(pair_widths(found.pairs))} and "
            "is no few-step LoRA, or a part of one is missing (then download it again). A style "
            "LoRA goes into ComfyUI's own 'LoraLoaderModelOnly', beside a few-step LoRA."
        )
    return pairs
