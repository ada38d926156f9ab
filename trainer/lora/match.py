"""Checks whether a LoRA fits a model: every key must match in name and shape, or nothing is
applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from .names import module_path
from .pairs import (
    LoraError,
    LoraPair,
    family_of_layers,
    kohya_name,
    layers_of,
    lora_targets,
    weight_shapes,
)

if TYPE_CHECKING:
    from ..families.record import Base

Model = nn.Module | Mapping[str, tuple[int, ...]]
SHOWN = 3  # examples of each kind of misfit in an error


@dataclass(frozen=True)
class MatchReport:
    """Paths of a LoRA against a model. `missing` are covered modules without a pair; `wrong_shape`
    says what is wrong.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: dict[str, str]

    @property
    def fits(self) -> bool:
        """Every pair of the LoRA fits a module; the LoRA may cover only part of the model."""
        return bool(self.matched) and not self.unexpected and not self.wrong_shape

    @property
    def complete(self) -> bool:
        """`fits`, and every module the MCM LoRA covers has its pair."""
        return self.fits and not self.missing

    def text(self) -> str:
        """One line: how many fit, and the first misfits of each kind."""
        parts = [f"{len(self.matched)} of its layers fit"]
        shapes = [f"{path} {why}" for path, why in self.wrong_shape.items()]
        kinds = (
            (shapes, "have another shape"),
            (self.unexpected, "are unknown to the model"),
            (self.missing, "of the model's have no weights in the LoRA"),
        )
        for found, what in kinds:
            if found:
                more = ", ..." if len(found) > SHOWN else ""
                parts.append(f"{len(found)} {what} ({', '.join(found[:SHOWN])}{more})")
        return "; ".join(parts)


def text_width(in_widths: Mapping[str, int]) -> int | None:
    """Input width of the layers that read the text, from paths or underscore names; None when
    there are none.
    """
    layers = layers_of(in_widths)
    ends = (layers.text_layer, layers.text_layer.replace(".", "_"))
    for name in sorted(in_widths):
        path = module_path(name, layers) or name
        if path.endswith(ends) and not any(m in path for m in layers.markers):
            return in_widths[name]
    return None


def guess_base(in_widths: Mapping[str, int]) -> Base | None:
    """The base model that these modules (path or underscore name -> input width) come from, or
    None.
    """
    from ..families.unet import IMAGE_MODELS

    family, width = family_of_layers(in_widths), text_width(in_widths)
    rows = family.bases if family else IMAGE_MODELS
    return next((base for base in rows if base.text_width == width), None)


def offered_size(in_widths: Mapping[str, int]) -> tuple[int, int, int]:
    """Width and height in pixels and frames to offer for a LoRA that says nothing of them."""
    from ..families import FAMILIES

    return (guess_base(in_widths) or FAMILIES[0].bases[0]).size


def pair_widths(pairs: Mapping[str, LoraPair]) -> dict[str, int]:
    """Input width of each pair, for `guess_base`."""
    return {path: pair.down.shape[1] for path, pair in pairs.items()}


def describe_base(in_widths: Mapping[str, int]) -> str:
    """A name for people: the recognised base, or how wide its text layers are."""
    base = guess_base(in_widths)
    if base is not None:
        return base.label
    width = text_width(in_widths)
    family = family_of_layers(in_widths)
    kind = "" if family is None else f" of {family.title.partition(' (')[0]}"
    told = "" if width is None else f" (text layers {width} wide)"
    return f"an unknown size{kind}{told}" if kind else f"an unknown base model{told}"


def resolve_names(
    pairs: Mapping[str, LoraPair], module_paths: Iterable[str]
) -> dict[str, LoraPair]:
    """Replace underscore names by the module paths of the base model; names without a module are
    kept as they are.

    Raises LoraError when two modules share an underscore name or two pairs mean the same module.
    """
    paths = set(module_paths)
    table: dict[str, str] = {}
    for path in sorted(paths):
        other = table.setdefault(kohya_name(path), path)
        if other != path:
            raise LoraError(
                f"`{kohya_name(path)}` could mean `{other}` or `{path}` in this model; "
                "use the PEFT format, which keeps the dots."
            )
    resolved: dict[str, LoraPair] = {}
    layers = layers_of(paths)
    for name, pair in pairs.items():
        path = name if name in paths else table.get(name) or module_path(name, layers) or name
        path = path if path in paths else name
        if path in resolved:
            raise LoraError(f"Two sets of weights for `{path}` in one LoRA; export it again.")
        resolved[path] = pair
    return resolved


def match(pairs: Mapping[str, LoraPair], model: Model) -> MatchReport:
    """Compare every key and shape of a LoRA with a UNet, or with its `weight_shapes`. Changes
    nothing.
    """
    shapes = weight_shapes(model)
    resolved = resolve_names(pairs, shapes)
    wrong = {
        path: f"(model {shapes[path]}, LoRA {pair.weight_shape})"
        for path, pair in resolved.items()
        if path in shapes and pair.weight_shape != shapes[path]
    }
    return MatchReport(
        matched=tuple(sorted(path for path in resolved if path in shapes and path not in wrong)),
        missing=tuple(path for path in lora_targets(shapes) if path not in resolved),
        unexpected=tuple(sorted(path for path in resolved if path not in shapes)),
        wrong_shape=dict(sorted(wrong.items())),
    )


def fit_pairs(
    pairs: Mapping[str, LoraPair],
    model: Model,
    *,
    complete: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, LoraPair]:
    """The pairs under the module paths of `model`, all of them, or LoraError saying which base the
    LoRA wants.

    `complete` also demands a pair for every module the MCM LoRA covers.
    """
    report = match(pairs, model)
    shapes = weight_shapes(model)
    if report.complete or (report.fits and not complete):
        return resolve_names(pairs, shapes)
    wanted = describe_base(pair_widths(pairs))
    named = (metadata or {}).get("mcm.base_model")
    loaded = describe_base({path: shape[1] for path, shape in shapes.items()})
    raise LoraError(
        f"This LoRA does not fit the loaded model: it was made for {wanted}"
        + (f" (base model '{named}')" if named else "")
        + f", loaded is {loaded}. Load the base model it was made for, or use another LoRA."
        # Else the two names say it.
        + (f" {report.text()}." if report.fits or wanted == loaded else "")
    )
