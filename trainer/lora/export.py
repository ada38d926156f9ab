"""Exports a LoRA: one kohya file for ComfyUI, or a PEFT folder like the published ones. Both are
read back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..files import atomic_write
from .adapter import lora_state
from .files import file_hashes, safetensors_bytes
from .formats import COMFYUI_PREFIX, PEFT_CONFIG, PEFT_WEIGHTS, LoraFile, read_lora
from .match import Model, fit_pairs
from .metadata import with_hashes
from .pairs import LoraError, LoraPair, check_pair, kohya_name, layers_of
from .whole import check_difference, whole_count

if TYPE_CHECKING:
    from ..families.record import LayerNames

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KEEP = "keep"
"""Instead of a dtype: keep each tensor's own."""
NOTHING = "There is nothing to export: the LoRA has no weights."


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back and found equal. `size` in bytes, ``modules`` are layers
    with a low-rank update.
    """

    path: Path
    modules: int
    size: int
    sha256: str
    autov2: str
    tensors_sha256: str
    differences: int = 0

    @property
    def counts(self) -> str:
        """What is in it, in words."""
        whole = f" and {whole_count(self.differences)}" if self.differences else ""
        return f"{self.modules} layers{whole}"


def cast_pairs(pairs: Mapping[str, LoraPair], dtype: str) -> dict[str, LoraPair]:
    """Pairs as they will be stored: on the CPU in `dtype` ("fp16", "bf16", "fp32" or "keep"),
    sorted by path.

    Raises LoraError for an unknown dtype, NaN, or values beyond fp16's 65504.
    """
    if dtype not in (*DTYPES, KEEP):
        raise LoraError(f"`dtype`={dtype!r}; allowed are {', '.join((*DTYPES, KEEP))}.")
    kind = DTYPES.get(dtype)
    stored: dict[str, LoraPair] = {}
    for path, pair in sorted(pairs.items()):
        check_pair(path, pair)
        down, up = (
            m.detach().to("cpu", kind or m.dtype).contiguous() for m in (pair.down, pair.up)
        )
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise LoraError(_too_large(f"`{path}`", dtype))
        # Alpha is stored as an fp32 number: 64 stays 64, and rsLoRA's roots lose nothing that
        # merging would keep.
        stored[path] = LoraPair(down, up, float(torch.tensor(pair.alpha, dtype=torch.float32)))
    return stored


def kohya_tensors(
    pairs: Mapping[str, LoraPair], name_of: Callable[[str], str] = kohya_name
) -> dict[str, Tensor]:
    """Keys and tensors of a kohya file: `.lora_down.weight`, `.lora_up.weight` and a scalar fp32
    `.alpha`.
    """
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        name = name_of(path)
        if f"{name}.alpha" in tensors:
            raise LoraError(
                f"Two modules share the kohya name `{name}`; use export_peft, which keeps the dots."
            )
        tensors[f"{name}.lora_down.weight"] = pair.down
        tensors[f"{name}.lora_up.weight"] = pair.up
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha, dtype=torch.float32)
    return tensors


def comfyui_tensors(
    pairs: Mapping[str, LoraPair], name_of: Callable[[str], str | None]
) -> dict[str, Tensor]:
    """Keys and tensors of a file with ComfyUI's own names of layers, `diffusion_model.` before the
    original one: `.lora_A.weight`, `.lora_B.weight`, and a scalar fp32 `.alpha` where it is not the
    rank. ComfyUI and diffusers read it. Raises LoraError for a layer without an original name.
    """
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        original = name_of(path)
        if original is None:
            raise LoraError(f"`{path}` has no name in ComfyUI; use export_peft.")
        name = COMFYUI_PREFIX + original
        tensors[f"{name}.lora_A.weight"] = pair.down
        tensors[f"{name}.lora_B.weight"] = pair.up
        if pair.alpha != pair.rank:
            tensors[f"{name}.alpha"] = torch.tensor(pair.alpha, dtype=torch.float32)
    return tensors


def whole_tensors(
    differences: Mapping[str, Tensor],
    layers: LayerNames,
    name: Callable[[str], str] | None = None,
) -> dict[str, Tensor]:
    """Keys and tensors of whole differences by path of the weight: `.diff` of a layer's weight,
    `.diff_b` of its bias. ``layers`` are those of the family, ``name`` is that of a layer in the
    file, ComfyUI's own if not given. Raises LoraError for a weight that cannot be named so.
    """
    tensors: dict[str, Tensor] = {}
    for path, value in differences.items():
        layer, _, part = path.rpartition(".")
        bare = bool(layers.bare) and path.endswith(layers.bare)
        original = layers.original(path if bare else layer) if layers.original else None
        if original is None or (bare and name is not None):
            raise LoraError(f"The difference of `{path}` has no place in this form; use 'comfyui'.")
        written = COMFYUI_PREFIX + original if name is None else name(layer)
        tensors[f"{written}.diff_b" if part == "bias" else f"{written}.diff"] = value
    return tensors


def cast_whole(differences: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Whole differences as they will be stored, as `cast_pairs` does it for pairs."""
    kind, stored = DTYPES.get(dtype), {}
    for path, value in sorted(differences.items()):
        check_difference(path, value)
        stored[path] = value.detach().to("cpu", kind or value.dtype).contiguous()
        if not torch.isfinite(stored[path]).all():
            raise LoraError(_too_large(f"The difference of `{path}`", dtype))
    return stored


def _too_large(what: str, dtype: str) -> str:
    return f"{what} has values too large for {dtype}; export with dtype='bf16' or 'fp32'."


def export_file(
    source: nn.Module | Mapping[str, LoraPair],
    path: str | Path,
    metadata: Mapping[str, str],
    **options: Any,
) -> Exported:
    """Write `source` as one .safetensors with the names by which ComfyUI's own loader knows the
    layers of its family; `options` and errors as `export_kohya`.
    """
    pairs = _pairs_of(source)
    original = layers_of({**pairs, **options.get("differences", {})}).original
    if original is None:
        return export_kohya(source, path, metadata, **options)
    named = partial(comfyui_tensors, name_of=original)
    return export_kohya(source, path, metadata, tensors_of=named, **options)


def export_kohya(
    source: nn.Module | Mapping[str, LoraPair],
    path: str | Path,
    metadata: Mapping[str, str],
    *,
    dtype: str = "fp16",
    extra: Mapping[str, str] | None = None,
    base: Model | None = None,
    tensors_of: Callable[[Mapping[str, LoraPair]], dict[str, Tensor]] = kohya_tensors,
    differences: Mapping[str, Tensor] | None = None,
    layer_name: Callable[[str], str] | None = None,
) -> Exported:
    """Write `source` (a UNet with a LoRA, or pairs) as one kohya .safetensors that ComfyUI's own
    loader reads. `tensors_of` makes its keys and tensors.

    The tensor hashes are added to `metadata`; `extra` holds more entries, such as `workflow`.
    Before the file takes its place it is read back and compared key by key and value by value, and
    matched against `base` (the UNet itself when `source` is one): a failed check leaves an older
    file untouched. Raises LoraError, and OSError on a full disk.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise LoraError(f"`{path.name}` must end in .safetensors, or ComfyUI will not list it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = _pairs_of(source)
    model = base if base is not None else (source if isinstance(source, nn.Module) else None)
    if model is not None and (pairs or not differences):
        fit_pairs(pairs, model)
    stored = cast_pairs(pairs, dtype)
    whole = cast_whole(differences or {}, dtype)
    if not stored and not whole:
        raise LoraError(NOTHING)
    layers = layers_of({**pairs, **whole})
    tensors = {**tensors_of(stored), **whole_tensors(whole, layers, layer_name)}
    told = with_hashes(_joined(metadata, extra or {}), tensors)

    def check(written: Path) -> None:
        back = read_lora(written, stored)
        _compare(back, stored, whole)
        if back.metadata != told or not back.hash_ok:
            changed = f"The metadata of `{path.name}` changed when it was read back;"
            raise LoraError(f"{changed} nothing was replaced. Export again.")

    atomic_write(path, safetensors_bytes(tensors, told), check)
    return replace(_exported(path, path, stored), differences=len(whole))


def _joined(metadata: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    twice = sorted(set(metadata) & set(extra))
    if twice:
        raise LoraError(
            f"`extra` would overwrite metadata: {', '.join(twice)}. Give each entry once."
        )
    return {**metadata, **extra}


def export_peft(
    source: nn.Module | Mapping[str, LoraPair],
    folder: str | Path,
    *,
    dtype: str = "fp32",
    base_model: str = "",
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Write a PEFT folder in the layout of the reference checkpoints;
    `peft.PeftModel.from_pretrained` loads it.

    The folder is staged beside its place and renamed when it was read back and found equal. A
    folder that exists is refused with LoraError.
    """
    folder = Path(folder)
    if folder.exists():
        raise LoraError(f"`{folder}` exists already; choose another name or remove it first.")
    stored = cast_pairs(_pairs_of(source), dtype)
    if not stored:
        raise LoraError(NOTHING)
    tensors: dict[str, Tensor] = {}
    for path, pair in stored.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.down
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.up
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        config = json.dumps(peft_config(stored, base_model), indent=2, sort_keys=True)
        staging.mkdir(parents=True)
        atomic_write(staging / PEFT_CONFIG, config.encode("utf-8"))
        content = safetensors_bytes(tensors, {"format": "pt", **(metadata or {})})
        atomic_write(staging / PEFT_WEIGHTS, content)
        _compare(read_lora(staging), stored)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _exported(folder, folder / PEFT_WEIGHTS, stored)


def peft_config(pairs: Mapping[str, LoraPair], base_model: str = "") -> dict[str, object]:
    """`adapter_config.json`: the common rank and alpha, and patterns for the modules that
    differ.
    """
    ranks = {path: pair.rank for path, pair in pairs.items()}
    alphas = {path: _whole(pair.alpha) for path, pair in pairs.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        # `^`: PEFT matches patterns at the end of a path, and `x.attn1` must not speak for
        # `y.x.attn1`.
        "rank_pattern": {f"^{path}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{path}": value for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(pairs),
    }


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _most_common(values: Mapping[str, float]) -> float:
    counted = list(values.values())
    return max(sorted(set(counted)), key=counted.count)


def _pairs_of(source: nn.Module | Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
    return lora_state(source) if isinstance(source, nn.Module) else source


def _compare(
    back: LoraFile, stored: Mapping[str, LoraPair], whole: Mapping[str, Tensor] | None = None
) -> None:
    """Raise LoraError unless the file that was read back has the same modules, values, dtypes and
    alphas.
    """
    for path, value in (whole or {}).items():
        if not torch.equal(back.differences.get(path, value[:0]), value):
            raise LoraError(f"The difference of `{path}` was lost; nothing was replaced.")
    if set(back.pairs) != set(stored):
        odd = sorted(set(back.pairs) ^ set(stored))
        raise LoraError(
            f"The export had other modules when it was read back (first: {odd[0]}); nothing was "
            "replaced."
        )
    for path, pair in stored.items():
        read = back.pairs[path]
        same = (
            read.alpha == pair.alpha
            and read.down.dtype == pair.down.dtype
            and torch.equal(read.down, pair.down)
            and torch.equal(read.up, pair.up)
        )
        if not same:
            raise LoraError(
                f"`{path}` changed when it was read back; nothing was replaced. Check the disk and "
                "export again."
            )


def _exported(path: Path, weights: Path, stored: Mapping[str, LoraPair]) -> Exported:
    hashes = file_hashes(weights)
    size = weights.stat().st_size
    return Exported(path, len(stored), size, hashes.sha256, hashes.autov2, hashes.tensors_sha256)
