"""Describes a LoRA file: family, format, ranks, metadata and hashes, without loading a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.motion_module import read_motion_module
from ..models.weights import ModelError, shapes_only
from ..words import span
from .few_step import declares_few_step, describe_start
from .files import read_header
from .formats import DIFFUSERS_WEIGHTS, PEFT_WEIGHTS, LoraFile, locate, read_lora
from .match import describe_base, guess_base
from .pairs import LoraError, base_modules, family_of_layers, lora_targets, weight_shapes

if TYPE_CHECKING:
    from ..families import Family

LONG_VALUE = 100  # characters of a metadata value shown before it is cut
HASH_WORDS = {
    True: "matches the tensors",
    False: "DOES NOT match the tensors",
    None: "not declared",
}


@dataclass(frozen=True)
class InspectReport:
    """Everything known about a file. `unresolved` are names no module path was found for, when
    paths were given.
    """

    path: Path
    format: str
    family: str
    base: str
    modules: tuple[str, ...]
    unresolved: tuple[str, ...]
    ranks: dict[int, int]
    """Rank -> number of modules."""
    alpha: str
    dtypes: tuple[str, ...]
    size: int
    """Bytes of the weights file."""
    sha256: str
    autov2: str
    tensors_sha256: str
    hash_ok: bool | None
    metadata: dict[str, str]
    about: str = ""
    """What the file is, in one line."""

    @property
    def rank(self) -> str:
        """The rank of all modules, "2 to 6" where it differs, "none" without a low-rank update."""
        return span(self.ranks) or "none"

    def text(self) -> str:
        """The report for a terminal, one fact per line."""
        rows = [
            ("file", f"{self.path.name} ({self.size / 2**20:.2f} MiB)"),
            ("family", self.family),
            ("what it is", self.about),
            ("format", self.format),
            ("made for", self.base),
            (
                "modules",
                f"{len(self.modules)}"
                + (f", {len(self.unresolved)} unknown" if self.unresolved else ""),
            ),
            ("rank, alpha", f"{self.rank}, {self.alpha} ({', '.join(self.dtypes)})"),
            ("AutoV2", self.autov2),
            ("sha256", self.sha256),
            ("tensors sha256", self.tensors_sha256),
            ("declared hash", HASH_WORDS[self.hash_ok]),
        ]
        rows += [(key, _shortened(value)) for key, value in sorted(self.metadata.items())]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def inspect_file(
    path: str | Path, unet_paths: nn.Module | Iterable[str] | None = None
) -> InspectReport:
    """Describe a LoRA file or folder. `unet_paths` (a UNet or its module paths) resolves kohya's
    names.

    Raises LoraError for anything `read_lora` refuses.
    """
    paths = None if unet_paths is None or isinstance(unet_paths, nn.Module) else set(unet_paths)
    model = unet_paths if isinstance(unet_paths, nn.Module) else paths
    found = read_lora(path, model)
    names = {**found.pairs, **found.differences}
    weights = locate(Path(path))
    return InspectReport(
        path=Path(path),
        format=found.format,
        family=found.metadata.get("mcm.family") or _family(names, found.widths),
        base=found.metadata.get("mcm.base_model") or describe_base(found.widths),
        modules=tuple(sorted(found.pairs)),
        unresolved=() if model is None else _unresolved(found, model),
        ranks=dict(sorted(Counter(pair.rank for pair in found.pairs.values()).items())),
        alpha=span(pair.alpha for pair in found.pairs.values()) or "none",
        dtypes=_dtypes(found),
        size=weights.stat().st_size,
        sha256=found.hashes.sha256,
        autov2=found.hashes.autov2,
        tensors_sha256=found.hashes.tensors_sha256,
        hash_ok=found.hash_ok,
        metadata=found.metadata,
        about=describe_start(found) if _steps_are_known(found) else "a LoRA",
    )


def _dtypes(found: LoraFile) -> tuple[str, ...]:
    kinds = {pair.down.dtype for pair in found.pairs.values()}
    kinds |= {value.dtype for value in found.differences.values()}
    return tuple(sorted(str(kind).removeprefix("torch.") for kind in kinds))


def _steps_are_known(found: LoraFile) -> bool:
    """Whether a LoRA is ours, or of a family for which others publish step LoRAs."""
    family = family_of_layers({**found.pairs, **found.differences})
    return declares_few_step(found.metadata) or bool(family and family.step_loras)


@dataclass(frozen=True)
class BaseReport:
    """What is known of a base model, or of a file that belongs to one, by headers alone."""

    rows: tuple[tuple[str, str], ...]

    @property
    def told(self) -> str:
        """What it is, and of which family, in a few words."""
        known = dict(self.rows)
        return f"{known['what it is']} of the family {known['family']}"

    def text(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)


def inspect_base(path: Path) -> BaseReport | None:
    """Describe a base model's file or folder, or a text encoder, autoencoder or motion module,
    without reading its weights; None for anything else. Raises ModelError for a model of a known
    kind that cannot be used.
    """
    from ..families import FAMILIES

    if path.is_dir():
        if any((path / name).is_file() for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS)):
            return None
        families = [family for family in FAMILIES if family.matches(path)]
    elif path.is_file():
        header = _header(path)
        families = [family for family in FAMILIES if family.shelf.holds(path, header)]
        families += [f for f in FAMILIES if f.describe is not None and f.matches(path)]
    else:
        return None
    with shapes_only():
        return _network(path, families[0]) if families else _companion(path, FAMILIES)


def _header(path: Path) -> dict[str, Any]:
    try:
        return read_header(path)
    except LoraError:  # a pickle, or no weights at all
        return {}


def _network(path: Path, family: Family) -> BaseReport:
    from ..families import Companions

    rows = [("file", path.name), ("family", family.name), ("what it is", "a base model")]
    try:
        if family.describe is not None:
            network, size, form = family.describe(path)
            rows += [("size", size), ("form", form)]
        else:
            network = family.load(path, torch.float32, Companions()).network
            rows.append(("size", describe_base(_widths(network))))
    except ModelError as error:
        return BaseReport((*rows, ("cannot be used", str(error))))
    trained = lora_targets(network)
    rows += [("modules", f"{len(trained)} of {len(base_modules(network))} are trained")]
    rows += [("which, and why", family.layers.trained), ("licence", family.licence)]
    return BaseReport(tuple(rows))


def _widths(network: nn.Module) -> dict[str, int]:
    return {path: shape[1] for path, shape in weight_shapes(network).items()}


def _companion(path: Path, families: Sequence[Family]) -> BaseReport | None:
    if path.is_dir():
        return None
    found = None
    for family in families:
        for setting, offer in family.offers.items():
            with suppress(ModelError):
                if found is None and offer.fits(path):
                    found = family.name, f"a {setting.replace('_', ' ')} (`{setting}`)"
    if found is None:
        with suppress(ValueError, OSError):
            module = read_motion_module(path)
            owner = next(family for family in families if "motion_module" in family.takes)
            about = f"a motion module (`motion_module`) of {len(module.weights)} weights"
            found = owner.name, about
    if found is None:
        return None
    rows = (("file", path.name), ("family", found[0]), ("what it is", found[1]))
    return BaseReport(rows)


def _family(names: Iterable[str], widths: Mapping[str, int]) -> str:
    family = family_of_layers(names)
    if family is not None and family.step_loras is not None:
        return family.name
    base = guess_base(widths)
    return "unknown" if base is None else base.name


def _unresolved(found: LoraFile, model: nn.Module | set[str]) -> tuple[str, ...]:
    known = set(base_modules(model)) if isinstance(model, nn.Module) else model
    return tuple(sorted(set(found.pairs) - known))


def _shortened(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= LONG_VALUE else f"{line[:LONG_VALUE]}... ({len(value)} characters)"
