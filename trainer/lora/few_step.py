"""Checks whether a file is a few-step LoRA of a model; shared by sampler, trainer and nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..diffusion.noise import EPSILON
from ..words import span
from .formats import LoraFile
from .match import Model, describe_base, fit_pairs, match
from .pairs import KOHYA_PREFIX, LoraError, LoraPair, layers_of, weight_shapes
from .recommended import read_recommended
from .whole import fit_differences, whole_count

if TYPE_CHECKING:
    from ..families import Family

DECLARED, OFFICIAL = "declared", "official"
OFFICIAL_RANK = 64
HASH = "modelspec.hash_sha256"
"""Metadata that a conversion adds to a file that otherwise has none."""


def few_step_kind(found: LoraFile) -> str | None:
    """Why ``found`` counts as a few-step LoRA; None for any other, such as a style LoRA.

    "declared": its own metadata says so (``mcm.*``). "official": it has no metadata, like the
    published MCM LoRAs, and updates the same layers, in every part of a video model. A LoRA with
    another trainer's metadata (``ss_*``, ``modelspec.*``) is not official.
    """
    if declares_few_step(found.metadata):
        return DECLARED
    if any(key.startswith(("ss_", "modelspec.")) and key != HASH for key in found.metadata):
        return None
    return OFFICIAL if _everywhere(found.pairs) else None


def declares_few_step(metadata: Mapping[str, str]) -> bool:
    """Whether a LoRA with this metadata was exported by this pack's trainer."""
    return "mcm.family" in metadata or "mcm.version" in metadata


def as_published(found: LoraFile) -> bool:
    """Whether a LoRA of the kind "official" also has the form and rank of the published files."""
    ranks = {pair.rank for pair in found.pairs.values()}
    return found.format == "peft" and ranks == {OFFICIAL_RANK}


def _everywhere(names: Mapping[str, LoraPair]) -> bool:
    """By paths or underscore names: all kinds of layers of a family that has official LoRAs, and
    none that those leave alone.

    A style LoRA for images lacks the markers, one for motion alone all the others.
    """
    layers = layers_of(names)
    if not layers.markers or not layers.official:
        return False
    wanted = all(any(piece in name for name in names) for piece in layers.official)
    untouched = tuple(start.replace(".", "_") for start in layers.untouched)
    plain = (name.removeprefix(KOHYA_PREFIX).replace(".", "_") for name in names)
    return wanted and not any(name.startswith(untouched) for name in plain)


def fit_few_step(
    found: LoraFile,
    model: Model,
    family: str,
    model_name: str,
    file_name: str,
    prediction: str = EPSILON,
) -> dict[str, LoraPair]:
    """The pairs of ``found`` by module path of ``model`` (a UNet, or its `weight_shapes`), all of
    them. ``prediction`` is what the model predicts.

    A file without metadata, like the official ones, must cover every module that they cover. Raises
    LoraError for a LoRA of another family, prediction or of other shapes, for an incomplete one,
    and for a style LoRA of another trainer; the message names the base it needs.
    """
    _check_base(found, family, model_name, file_name, prediction)
    shapes = weight_shapes(model)
    pairs = _fitted(found, shapes)
    report = match(pairs, shapes)
    if not found.metadata.get("mcm.family") and not report.complete:
        raise LoraError(
            f"'{file_name}' covers {len(report.matched)} layers of the MODEL and leaves out "
            f"{len(report.missing)}: either it is not a few-step LoRA (it is made for "
            f"{describe_base(found.widths)}), or part of it is missing (then download "
            f"it again). {STYLE}"
        )
    if few_step_kind(found) is None:
        raise LoraError(
            f"'{file_name}' is not a few-step LoRA: nothing in its metadata says that it is for "
            f"few steps. {STYLE}"
        )
    return pairs


def _fitted(found: LoraFile, model: Model) -> dict[str, LoraPair]:
    """`fit_pairs`, of which a file of whole differences alone has none."""
    if found.differences and not found.pairs:
        return {}
    return fit_pairs(found.pairs, model, metadata=found.metadata)


@dataclass(frozen=True)
class Start:
    """What a run starts from, by the module paths of its network: ``told`` says in words what the
    file is, ``left_out`` names the weights whose differences ComfyUI would never apply. A file of
    others is not ``recorded``: it says nothing of how it was made.
    """

    pairs: dict[str, LoraPair]
    told: str
    differences: dict[str, Tensor] = field(default_factory=dict)
    recorded: bool = True
    left_out: tuple[str, ...] = ()

    def remark(self) -> str:
        """What is left out and why, as a sentence with a space before it; empty for nothing."""
        if not self.left_out:
            return ""
        return (
            f" Left out: {len(self.left_out)} differences (first: `{self.left_out[0]}`), because "
            "ComfyUI never applies those of weights that belong to no layer, whatever LoRA has "
            "them: it does not with this file by itself either."
        )

    def kept_rank(self, wanted: int) -> str:
        """What becomes of the rank ``wanted``, `lora.rank`, where the LoRA's own is higher, as a
        sentence; else empty.
        """
        if max((pair.rank for pair in self.pairs.values()), default=0) <= wanted:
            return ""
        return f"It keeps its {rank_of(self.pairs)} where that is more than `lora.rank`={wanted}."

    def ranks(self, least: int) -> dict[str, int]:
        """The rank of the adapter at each layer, ``least`` or more: of our own files and official
        ones the same everywhere.
        """
        if not self.recorded:
            return {path: max(least, pair.rank) for path, pair in self.pairs.items()}
        highest = max([least, *(pair.rank for pair in self.pairs.values())])
        return dict.fromkeys(self.pairs, highest)


def fit_start(
    found: LoraFile,
    network: nn.Module,
    family: Family,
    model_name: str,
    file_name: str,
    prediction: str,
) -> Start:
    """A LoRA for a run to start from: as `fit_few_step`, or any LoRA without a record of ours where
    others publish step LoRAs for the family. Raises LoraError.
    """
    unrecorded = family.step_loras is not None and not declares_few_step(found.metadata)
    if not unrecorded:
        pairs = fit_few_step(found, network, family.name, model_name, file_name, prediction)
    else:
        pairs = _fitted(found, network)
    fit_differences(found.differences, network)
    bare = family.layers.bare
    whole = {k: v for k, v in found.differences.items() if not (bare and k.endswith(bare))}
    left = tuple(k for k, v in found.differences.items() if k not in whole and v.any())
    return Start(pairs, describe_start(found), whole, not unrecorded, left)


def describe_start(found: LoraFile) -> str:
    """What a LoRA is, in one line for people: base model, rank, whole differences, record."""
    parts = [f"{len(found.pairs)} layers", rank_of(found.pairs)] if found.pairs else []
    if found.differences:
        parts.append(f"{whole_count(len(found.differences))} of norms, biases and the like")
    made_for = f"for {describe_base(found.widths)} with {', '.join(parts)}"
    if declares_few_step(found.metadata):
        return f"a few-step LoRA of this trainer {made_for}"
    if any(key.startswith("ss_") for key in found.metadata):
        return (
            f"another trainer's LoRA {made_for}, which says nothing of few steps. A style LoRA "
            "keeps its style, and few steps are still to be learned"
        )
    return f"a LoRA {made_for}, taken for a step LoRA: the file does not say how it was made"


def rank_of(pairs: Mapping[str, LoraPair]) -> str:
    """ "rank 64", "ranks 2 to 6"; empty for no pairs."""
    ranks = span(pair.rank for pair in pairs.values())
    return "" if not ranks else f"ranks {ranks}" if "to" in ranks else f"rank {ranks}"


def _check_base(
    found: LoraFile, family: str, model_name: str, file_name: str, prediction: str
) -> None:
    """Refuse a file that says of itself that it belongs to another base model."""
    wanted = found.metadata.get("mcm.family")
    if wanted and wanted != family:
        base = found.metadata.get("mcm.base_model", "unknown")
        raise LoraError(
            f"'{file_name}' is a LoRA for '{wanted}' (base model '{base}'), but the MODEL is "
            f"'{model_name}' of family '{family}'. Load its base model, or another LoRA."
        )
    if few_step_kind(found) is None:  # says nothing of what it was made for
        return
    made_for = read_recommended(found.metadata, file_name).prediction_type
    if made_for != prediction:
        raise LoraError(
            f"'{file_name}' was distilled from a model that predicts {made_for}, but the MODEL "
            f"'{model_name}' predicts {prediction}. Load its base model, or another LoRA."
        )


STYLE = (
    "Load style LoRAs with ComfyUI's own 'LoraLoaderModelOnly', in addition to a few-step LoRA "
    "(with AnimateDiff: before the motion module)."
)
"""How to use a LoRA that is not for few steps."""
