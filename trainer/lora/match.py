"""Checks whether a LoRA fits a model: every key must match in name and shape, or nothing is
applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ..paths import BUNDLED
from .names import module_path
from .pairs import LoraError, LoraPair, is_target, kohya_name, weight_shapes

Model = nn.Module | Mapping[str, tuple[int, ...]]
SHOWN = 3  # examples of each kind of misfit in an error


@dataclass(frozen=True)
class Base:
    """How to recognise a base model: the text width its cross-attention reads, and a piece of its
    module names. ``size`` is the clip to offer, where a LoRA says nothing: width and height in
    pixels, frames.
    """

    name: str
    label: str
    text_width: int
    marker: str
    size: tuple[int, int, int] = (256, 256, 16)


# First match wins: a row without marker is the image model that shares the text width of a video
# model above it.
BASES = (
    Base("modelscope", "ModelScope text-to-video (or ZeroScope)", 1024, "temp_attentions"),
    Base(
        "animatediff", "AnimateDiff on Stable Diffusion 1.5", 768, "motion_modules", (512, 512, 16)
    ),
    Base(BUNDLED, "the built-in mini model", 64, "temp_attentions", (64, 64, 8)),
    Base("sd15", "Stable Diffusion 1.5 (images, no motion)", 768, ""),
    Base("sd21", "Stable Diffusion 2.1 (images, no motion)", 1024, ""),
    Base("sdxl", "Stable Diffusion XL (images, no motion)", 2048, ""),
)
TEMPORAL_MARKERS = ("temp_attentions", "motion_modules", "transformer_in")


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
        parts = [f"{len(self.matched)} modules fit"]
        shapes = [f"{path} {why}" for path, why in self.wrong_shape.items()]
        kinds = (
            (shapes, "have another shape"),
            (self.unexpected, "are unknown to the model"),
            (self.missing, "of the model have no weights in the LoRA"),
        )
        for found, what in kinds:
            if found:
                more = ", ..." if len(found) > SHOWN else ""
                parts.append(f"{len(found)} {what} ({', '.join(found[:SHOWN])}{more})")
        return "; ".join(parts)


def text_width(in_widths: Mapping[str, int]) -> int | None:
    """Input width of the spatial cross-attention keys, from paths or underscore names; None when
    there are none.

    The second attention of a temporal block is a self-attention in both families, so those do not
    count.
    """
    for name in sorted(in_widths):
        spatial = not any(marker in name for marker in TEMPORAL_MARKERS)
        if spatial and name.endswith(("attn2.to_k", "attn2_to_k")):
            return in_widths[name]
    return None


def guess_base(in_widths: Mapping[str, int]) -> Base | None:
    """The base model that these modules (path or underscore name -> input width) come from, or
    None.
    """
    width = text_width(in_widths)
    for base in BASES:
        if base.text_width == width and any(base.marker in name for name in in_widths):
            return base
    return None


def base_named(name: str) -> Base:
    """The row of `BASES` with this name."""
    return next(base for base in BASES if base.name == name)


def pair_widths(pairs: Mapping[str, LoraPair]) -> dict[str, int]:
    """Input width of each pair, for `guess_base`."""
    return {path: pair.down.shape[1] for path, pair in pairs.items()}


def describe_base(in_widths: Mapping[str, int]) -> str:
    """A name for people: the recognised base, or its cross-attention width."""
    base = guess_base(in_widths)
    if base is not None:
        return f"{base.label} (cross-attention width {base.text_width})"
    width = text_width(in_widths)
    return (
        "an unknown base" if width is None else f"an unknown base (cross-attention width {width})"
    )


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
    for name, pair in pairs.items():
        path = name if name in paths else table.get(name) or module_path(name) or name
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
        missing=tuple(sorted(path for path in shapes if is_target(path) and path not in resolved)),
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
        + f", loaded is {loaded}. Load the base it was made for, or another LoRA. Nothing was "
        f"changed. In detail: {report.text()}."
    )
