"""Converts a LoRA between all known file formats without changing its values.

For AnimateDiff-Evolved one LoRA becomes two files: the image layers for ComfyUI's own loader, the
motion layers as a motion LoRA in the keys of the AnimateDiff authors, and on request a motion
module with those layers merged in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_write
from ..models.motion_module import original_state, read_motion_module
from ..models.sd15 import original_name
from .export import (
    KEEP,
    cast_pairs,
    cast_whole,
    export_file,
    export_kohya,
    export_peft,
    kohya_tensors,
    peft_config,
)
from .files import safetensors_bytes
from .formats import read_lora
from .match import describe_base, pair_widths
from .metadata import with_hashes
from .names import MOTION, motion_lora_name, webui_name, with_paths
from .pairs import LoraError, LoraPair, kohya_name, layers_of
from .whole import whole_count

EVOLVED = "animatediff-evolved"
SPATIAL, MOTION_LORA, MOTION_MODULE = "-spatial", "-motion-lora", "-motion-module"
FOLDED = "mcm.folded_alphas"
"""Metadata of a motion LoRA: the alphas that its readers do not know, and that its `up` carries."""
OF_THE_FILE = ("format", "lora_adapter_metadata", "modelspec.hash_sha256", "sshs_model_hash")
"""Metadata that describes one file; each new file gets its own."""


@dataclass(frozen=True)
class Converted:
    """What was written: each file with its number of modules; `note` for what was left out."""

    files: dict[Path, int]
    note: str = ""

    def text(self) -> str:
        lines = [f"Wrote {path} ({count} modules)." for path, count in self.files.items()]
        return "\n".join([*lines, self.note] if self.note else lines)


@dataclass(frozen=True)
class Source:
    """A LoRA under module paths, with its file's metadata.

    Its motion layers will be merged into ``motion_module``.
    """

    pairs: dict[str, LoraPair]
    metadata: dict[str, str]
    motion_module: Path | None = None
    differences: dict[str, Tensor] = field(default_factory=dict)

    @property
    def whole_note(self) -> str:
        return f"{whole_count(len(self.differences))} with it." if self.differences else ""

    def part(self, motion: bool) -> dict[str, LoraPair]:
        """The motion layers, or the image layers. Raises LoraError for a LoRA of another UNet."""
        spatial = {path for path in self.pairs if original_name(path) is not None}
        strange = [path for path in self.pairs if path not in spatial and MOTION not in path]
        if strange:
            raise LoraError(
                "Only LoRAs of Stable Diffusion 1.5 and AnimateDiff have layers for this format; "
                f"this one is for {describe_base(pair_widths(self.pairs))}."
            )
        return {path: pair for path, pair in self.pairs.items() if (path in spatial) != motion}


def read_source(path: Path) -> Source:
    """Any LoRA that `read_lora` reads, or a folder of the two files for AnimateDiff-Evolved.

    Raises LoraError.
    """
    path = Path(path)
    halves = [sorted(path.glob(f"*{part}.safetensors")) for part in (SPATIAL, MOTION_LORA)]
    if path.is_dir() and all(len(found) == 1 for found in halves):
        spatial, motion = (read_source(found[0]) for found in halves)
        return Source({**spatial.pairs, **motion.pairs}, spatial.metadata)
    found = read_lora(path)
    told = {k: v for k, v in found.metadata.items() if k not in OF_THE_FILE}
    pairs = _unfolded(with_paths(found.pairs), told.pop(FOLDED, "{}"))
    return Source(dict(sorted(pairs.items())), told, differences=found.differences)


def convert(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    dtype: str = KEEP,
    motion_module: Path | None = None,
) -> Converted:
    """Write LoRA ``source`` at ``out`` in the form ``to``, one of `TARGETS`.

    ``dtype`` "keep" changes no number. ``motion_module`` is merged with the motion layers, for
    "animatediff-evolved" only. Raises LoraError or MotionModuleError; nothing is left half written.
    """
    if to not in TARGETS:
        raise LoraError(f"`to`={to!r} is not a known format; use {', '.join(TARGETS)}.")
    if motion_module is not None and to != EVOLVED:
        raise LoraError(f"`motion_module` is only used with '{EVOLVED}'; leave it out.")
    found = read_source(Path(source))
    pairs, whole = cast_pairs(found.pairs, dtype), cast_whole(found.differences, dtype)
    if found.differences and to not in WITH_DIFFERENCES:
        raise LoraError(
            f"`{Path(source).name}` has {whole_count(len(found.differences))} (first: "
            f"{min(found.differences)}), which '{to}' cannot hold; use "
            f"{' or '.join(WITH_DIFFERENCES)}."
        )
    changed = replace(found, pairs=pairs, differences=whole, motion_module=motion_module)
    return TARGETS[to](changed, Path(out))


def _peft(source: Source, out: Path) -> Converted:
    base = source.metadata.get("mcm.base_model", "")
    done = export_peft(source.pairs, out, dtype=KEEP, base_model=base, metadata=source.metadata)
    return Converted({out: done.modules})


def _comfyui(source: Source, out: Path) -> Converted:
    whole = source.differences
    done = export_file(source.pairs, out, source.metadata, dtype=KEEP, differences=whole)
    return Converted({out: done.modules}, source.whole_note)


def _kohya(source: Source, out: Path) -> Converted:
    """With the underscores of the names that ComfyUI and musubi-tuner know: for a transformer those
    of its original file, for a UNet diffusers'.
    """
    original = layers_of({**source.pairs, **source.differences}).original

    def name_of(path: str) -> str:
        return kohya_name((original and original(path)) or path)

    done = export_kohya(
        source.pairs,
        out,
        source.metadata,
        dtype=KEEP,
        tensors_of=partial(kohya_tensors, name_of=name_of),
        differences=source.differences,
        layer_name=name_of,
    )
    return Converted({out: done.modules}, source.whole_note)


def _webui(source: Source, out: Path) -> Converted:
    spatial = source.part(motion=False)
    named = partial(kohya_tensors, name_of=webui_name)
    done = export_kohya(spatial, out, source.metadata, dtype=KEEP, tensors_of=named)
    left = len(source.pairs) - done.modules
    note = f"{left} layers of the motion module were left out, because image models have none."
    return Converted({out: done.modules}, note if left else "")


def _diffusers(source: Source, out: Path) -> Converted:
    start = layers_of(source.pairs).component
    config = {f"{start}.{k}": v for k, v in _diffusers_config(source.pairs).items()}
    tensors: dict[str, Tensor] = {}
    for path, pair in source.pairs.items():
        tensors[f"{start}.{path}.lora_A.weight"] = pair.down
        tensors[f"{start}.{path}.lora_B.weight"] = pair.up
    told = {**source.metadata, "format": "pt", "lora_adapter_metadata": json.dumps(config)}
    _write(out, tensors, told, source.pairs)
    return Converted({out: len(source.pairs)})


def _diffusers_config(pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """PEFT's config without the notes that diffusers' loader does not take."""
    config = peft_config(pairs, "")
    unused = ("peft_type", "base_model_name_or_path", "inference_mode")
    return {key: value for key, value in config.items() if key not in unused}


def _evolved(source: Source, out: Path) -> Converted:
    """The folder ``out`` with the files for AnimateDiff-Evolved, staged and renamed when whole."""
    if out.exists():
        raise LoraError(f"`{out}` exists already; choose another name or remove it first.")
    spatial, motion = source.part(motion=False), source.part(motion=True)
    if not spatial or not motion:
        raise LoraError(
            f"The LoRA has {len(spatial)} image layers and {len(motion)} motion layers; "
            "AnimateDiff-Evolved needs both. Choose a LoRA for AnimateDiff."
        )
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    names = {part: f"{out.name}{part}.safetensors" for part in (SPATIAL, MOTION_LORA)}
    counts = {out / names[SPATIAL]: len(spatial), out / names[MOTION_LORA]: len(motion)}
    try:
        export_kohya(spatial, staging / names[SPATIAL], source.metadata, dtype=KEEP)
        _motion_lora(motion, staging / names[MOTION_LORA], source.metadata)
        if source.motion_module is not None:
            merged = f"{out.name}{MOTION_MODULE}.safetensors"
            counts[out / merged] = _merged_module(motion, staging / merged, source.motion_module)
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Converted(counts, "Use the same strength for both LoRAs; they are made for 1.")


def _motion_lora(pairs: Mapping[str, LoraPair], path: Path, metadata: Mapping[str, str]) -> None:
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, list[Any]] = {}
    for module, pair in pairs.items():
        up = _fold(pair)
        if pair.alpha != pair.rank:
            alphas[module] = [pair.alpha, str(pair.up.dtype).removeprefix("torch.")]
        name = motion_lora_name(module)
        tensors[f"{name}.down.weight"], tensors[f"{name}.up.weight"] = pair.down, up
    told = {**metadata, **({FOLDED: json.dumps(alphas)} if alphas else {})}
    _write(path, tensors, told, pairs)


def _fold(pair: LoraPair) -> Tensor:
    """`up` multiplied by alpha / rank, for readers without alpha; fp32 if that would round."""
    if pair.alpha == pair.rank:
        return pair.up
    wide = pair.up.float() * (pair.alpha / pair.rank)
    narrow = wide.to(pair.up.dtype)
    return narrow if torch.equal(narrow.float(), wide) else wide


def _unfolded(pairs: dict[str, LoraPair], alphas: str) -> dict[str, LoraPair]:
    """The inverse of `_fold` where the file's own metadata tells the alphas."""
    try:
        known = dict(json.loads(alphas))
        for path, (alpha, dtype) in known.items():
            pair = pairs[path]
            up = (pair.up.float() / (alpha / pair.rank)).to(getattr(torch, dtype))
            pairs[path] = LoraPair(pair.down, up, float(alpha))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoraError(f"`{FOLDED}` is damaged ({error}); convert the LoRA again.") from error
    return pairs


def _merged_module(pairs: Mapping[str, LoraPair], path: Path, module_path: Path) -> int:
    """Write a motion module with ``pairs`` merged in, in its own dtypes; the number merged."""
    module = read_motion_module(module_path.expanduser().resolve())
    weights = dict(module.weights)
    for name, pair in pairs.items():
        key = f"{name}.weight"
        if key not in weights or tuple(weights[key].shape) != pair.weight_shape:
            raise LoraError(
                f"Motion module '{module.name}' has no layer `{name}` of shape "
                f"{pair.weight_shape}; use the kind that the LoRA was trained with."
            )
        merged = weights[key].float() + pair.delta()
        weights[key] = merged.to(weights[key].dtype)
    state = {key: value.contiguous() for key, value in original_state(weights).items()}
    atomic_write(path, safetensors_bytes(state, {"format": "pt"}))
    return len(pairs)


def _write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    wanted: Mapping[str, LoraPair],
) -> None:
    """Write a LoRA file whole, read it back and compare it with ``wanted``."""
    if path.suffix != ".safetensors":
        raise LoraError(f"`{path.name}` must end in .safetensors.")

    def check(written: Path) -> None:
        back = read_source(written).pairs
        if back.keys() != wanted.keys() or not all(_equal(back[p], wanted[p]) for p in wanted):
            raise LoraError(f"`{path.name}` changed when it was read back; nothing was replaced.")

    atomic_write(path, safetensors_bytes(tensors, with_hashes(metadata, tensors)), check)


def _equal(back: LoraPair, wanted: LoraPair) -> bool:
    """The same pair; an fp32 `up` whose alpha had to be folded may differ in its last bit."""
    exact = torch.equal(back.up, wanted.up) or (
        wanted.up.dtype == torch.float32 and torch.allclose(back.up, wanted.up, rtol=1e-6, atol=0)
    )
    return exact and torch.equal(back.down, wanted.down) and back.alpha == wanted.alpha


TARGETS: dict[str, Callable[[Source, Path], Converted]] = {
    "comfyui": _comfyui,
    "kohya": _kohya,
    "kohya-webui": _webui,
    "peft": _peft,
    "diffusers": _diffusers,
    EVOLVED: _evolved,
}
"""Format -> function that writes it."""
WITH_DIFFERENCES = ("comfyui", "kohya")
"""Formats that can hold whole differences of weights."""
