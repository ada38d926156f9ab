"""Reads a complete CLIP model (image and text encoder) from the usual files.

A folder as `transformers` writes it, one file with both halves, or ComfyUI's two: an image half in
`clip_vision/` with a text half that has its projection in `text_encoders/` or `clip/` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from .clip import clip_tokenizer, read_tokenizer
from .weights import ModelError, build_network, read_file, read_json, read_weights

REPOSITORIES = (
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
)
CACHED_FILES = ("config.json", "model.safetensors")
TEXT_FOLDERS = ("text_encoders", "clip")
IMAGE_KEY, TEXT_KEY = "visual_projection.weight", "text_projection.weight"
UNUSED = ("position_ids", "logit_scale")
NEED = (
    "A complete CLIP model reads images and text: use a folder such as "
    "openai/clip-vit-base-patch32 with config.json and model.safetensors, or ComfyUI's file in "
    "clip_vision/ with a CLIP text encoder that has `text_projection.weight` in text_encoders/."
)


def find_clip(setting: str) -> Path | None:
    """The file or folder of `adversarial.clip`: a path, "none", or "auto" for the local Hugging
    Face cache. None where there is none. Raises ModelError for a path that does not exist.
    """
    if setting == "none":
        return None
    if setting != "auto":
        path = Path(setting).expanduser()
        if not path.exists():
            raise ModelError(f"`adversarial.clip`='{setting}' does not exist; use auto or none.")
        return path
    for repository in REPOSITORIES:
        found = [try_to_load_from_cache(repository, file) for file in CACHED_FILES]
        paths = [Path(file) for file in found if isinstance(file, str)]
        if len(paths) == len(CACHED_FILES):
            return paths[0].parent
    return None


def read_clip(path: Path) -> tuple[Any, Any]:
    """``(CLIPModel in fp32 on the CPU, tokenizer)``, frozen. Raises ModelError."""
    if path.is_dir():
        config = read_json(path / "config.json")
        if config.get("model_type") != "clip":
            kind = config.get("model_type")
            raise ModelError(
                f"'{path}' holds a model of type {kind!r}, not a complete CLIP model. {NEED}"
            )
        own = (path / "vocab.json").is_file() and (path / "merges.txt").is_file()
        tokenizer = read_tokenizer(path) if own else clip_tokenizer()
        return _build(read_weights(path), CLIPConfig(**config), path), tokenizer
    weights = _halves(path)
    return _build(weights, _config_of(weights), path), clip_tokenizer()


def _halves(path: Path) -> dict[str, Tensor]:
    """Weights of both halves by the names of `CLIPModel`."""
    weights = read_file(path)
    if IMAGE_KEY not in weights:
        raise ModelError(f"'{path}' has no CLIP image encoder. {NEED}")
    if TEXT_KEY in weights:
        return weights
    width = len(weights[IMAGE_KEY])
    for folder in (path.parent, *(path.parent.parent / name for name in TEXT_FOLDERS)):
        for file in sorted(folder.glob("*clip*.safetensors")):
            text = read_file(file, lambda key: key.startswith("text_")) if file != path else {}
            if len(text.get(TEXT_KEY, ())) == width:
                return weights | text
    raise ModelError(f"'{path}' has no CLIP text encoder, and there is none beside it. {NEED}")


def _build(weights: Mapping[str, Tensor], config: Any, path: Path) -> Any:
    plain = {key: value for key, value in weights.items() if not key.endswith(UNUSED)}
    plain["logit_scale"] = torch.zeros(())
    return build_network(lambda: CLIPModel(config), plain, path).requires_grad_(False).eval()


def _config_of(weights: Mapping[str, Tensor]) -> Any:
    """The published CLIPs as their weights describe them."""
    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    places = weights["vision_model.embeddings.position_embedding.weight"]
    words = weights["text_model.embeddings.token_embedding.weight"]
    side = int((len(places) - 1) ** 0.5) * patches.shape[-1]
    sizes = {"vision": len(patches), "text": words.shape[1]}
    both = {half: _half(weights, half, width) for half, width in sizes.items()}
    both["vision"] |= {"patch_size": patches.shape[-1], "image_size": side}
    both["text"] |= {
        "vocab_size": len(words),
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "pad_token_id": len(words) - 1,
    }
    return CLIPConfig(
        text_config=both["text"],
        vision_config=both["vision"],
        projection_dim=len(weights[IMAGE_KEY]),
    )


def _half(weights: Mapping[str, Tensor], half: str, width: int) -> dict[str, Any]:
    prefix = f"{half}_model.encoder.layers."
    layers = {key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)}
    return {
        "hidden_size": width,
        "intermediate_size": len(weights[f"{prefix}0.mlp.fc1.weight"]),
        "num_hidden_layers": len(layers),
        # heads are 64 wide, but in the image halves of H and larger
        "num_attention_heads": 16 if width in (1280, 1664) else max(1, width // 64),
        "hidden_act": "quick_gelu" if len(weights[IMAGE_KEY]) <= 768 else "gelu",
    }
