"""CLIP vision models: a transformers folder, or the single file that ComfyUI calls `clip_vision`.

The file may be that of the whole CLIP; its text half is left out. Nothing is looked up online: the
sizes are those of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from .weights import ModelError, build_network, read_file, read_json, read_weights

PREFIX = "vision_model."
PATCHES = "embeddings.patch_embedding.weight"
PLACES = "embeddings.position_embedding.weight"
CLASS = "embeddings.class_embedding"
MLP = "encoder.layers.0.mlp.fc1.weight"
KINDS = ("clip_vision_model", "clip")
LAION_WIDTH = 1280
"""ViT-H and wider: trained by LAION with the exact GELU and 16 heads; narrower ones are OpenAI's.
Source: the configurations of the published models."""
FOREIGN = (
    ("resblocks.", "has open_clip's key names; use the file with transformers' key names"),
    ("vision_model.head.", "is a SigLIP model, not CLIP"),
    ("text_model.", "holds only CLIP's text encoder"),
)
# Keys besides the vision model in files of the complete CLIP, and in old files.
_IGNORED = ("position_ids",)


def read_clip_vision(path: Path) -> nn.Module:
    """The frozen vision model at ``path``, a folder or a .safetensors file, in fp32 on the CPU.

    Raises ModelError for another kind of model, and for missing or damaged weights.
    """
    if path.is_dir():
        config = _folder_config(path)
        return _built(read_weights(path), path, config)
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"'{path}' is not a .safetensors file; use this CLIP vision model's .safetensors file."
        )
    return _built(read_file(path), path, None)


def is_clip_vision(path: Path) -> bool:
    """Whether ``path`` is a CLIP vision folder or file, by its config or header alone."""
    if path.is_dir():
        try:
            kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError):
            return False
        return kind in KINDS
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any(name in file.keys() for name in (PREFIX + CLASS, CLASS))  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def _folder_config(folder: Path) -> Any:
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelError(
            f"'{folder}' holds a model of type {kind!r}; allowed are {' and '.join(KINDS)}."
        )
    return CLIPVisionConfig(**config.get("vision_config", {} if kind == "clip" else config))


def _built(weights: Mapping[str, Tensor], source: Path, config: Any) -> nn.Module:
    # transformers 5 saves a vision model alone without the prefix.
    prefix = "" if CLASS in weights else PREFIX
    plain = {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix) and not key.endswith(_IGNORED)
    }
    _refuse_foreign(weights, plain, source)
    config = config or _config_of(plain)
    named = CLIPVisionModel(_smallest()).state_dict()
    prefix = PREFIX if any(key.startswith(PREFIX) for key in named) else ""
    renamed = {prefix + key: value for key, value in plain.items()}
    network = build_network(lambda: CLIPVisionModel(config), renamed, source, torch.float32)
    return network.eval().requires_grad_(False)


def _refuse_foreign(names: Iterable[str], plain: Mapping[str, Tensor], source: Path) -> None:
    if all(key in plain for key in (CLASS, PATCHES, PLACES, MLP)):
        return
    keys = list(names)
    found = (what for piece, what in FOREIGN if any(piece in key for key in keys))
    what = next(found, f"has no CLIP vision model in it (there is {', '.join(sorted(keys)[:2])})")
    raise ModelError(f"'{source}' {what}. A CLIP vision file has keys such as `{PREFIX}{PATCHES}`.")


def _config_of(plain: Mapping[str, Tensor]) -> Any:
    width, _, patch, _ = plain[PATCHES].shape
    layers = {key.split(".")[2] for key in plain if key.startswith("encoder.layers.")}
    wide = width >= LAION_WIDTH
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=plain[MLP].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=16 if wide else max(1, width // 64),
        patch_size=patch,
        image_size=round((plain[PLACES].shape[0] - 1) ** 0.5) * patch,
        hidden_act="gelu" if wide else "quick_gelu",
    )


def _smallest() -> Any:
    """A minimal model of the same class, only to get the names of its weights."""
    return CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=2,
        patch_size=2,
    )
