"""Describes a LoRA file: family, format, ranks, metadata and hashes, without loading a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .formats import LoraFile, locate, read_lora
from .match import describe_base, guess_base, pair_widths
from .metadata import one_value
from .pairs import base_modules

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

    @property
    def rank(self) -> str:
        """The rank all modules share, or `Dynamic`."""
        return one_value(self.ranks)

    def text(self) -> str:
        """The report for a terminal, one fact per line."""
        rows = [
            ("file", f"{self.path.name} ({self.size / 2**20:.2f} MiB)"),
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
    widths = pair_widths(found.pairs)
    weights = locate(Path(path))
    return InspectReport(
        path=Path(path),
        format=found.format,
        family=found.metadata.get("mcm.family") or _family(widths),
        base=found.metadata.get("mcm.base_model") or describe_base(widths),
        modules=tuple(sorted(found.pairs)),
        unresolved=() if model is None else _unresolved(found, model),
        ranks=dict(sorted(Counter(pair.rank for pair in found.pairs.values()).items())),
        alpha=one_value(pair.alpha for pair in found.pairs.values()),
        dtypes=tuple(
            sorted({str(pair.down.dtype).removeprefix("torch.") for pair in found.pairs.values()})
        ),
        size=weights.stat().st_size,
        sha256=found.hashes.sha256,
        autov2=found.hashes.autov2,
        tensors_sha256=found.hashes.tensors_sha256,
        hash_ok=found.hash_ok,
        metadata=found.metadata,
    )


def _family(widths: Mapping[str, int]) -> str:
    base = guess_base(widths)
    return "unknown" if base is None else base.name


def _unresolved(found: LoraFile, model: nn.Module | set[str]) -> tuple[str, ...]:
    known = set(base_modules(model)) if isinstance(model, nn.Module) else model
    return tuple(sorted(set(found.pairs) - known))


def _shortened(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= LONG_VALUE else f"{line[:LONG_VALUE]}... ({len(value)} characters)"
