"""CLIP text models: the included vocabulary, and encoders from weights with any key names."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..paths import CLIP_MERGES
from .weights import ModelError, build_network, read_json, read_weights

TOKENS = 77
HEAD_WIDTH = 64
PREFIX = "text_model."
IGNORED = ("position_ids", "text_projection.weight", "logit_scale")
"""Old files store the first, files of the whole CLIP the others; no text model reads them."""


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of CLIP-L, which every Stable Diffusion 1.5 uses, from the embedded merges."""
    merges = gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf-8").splitlines()
    letters = _letters()
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(m.split(" ")) for m in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False)
    # The two files of the classic tokenizer are what every version of transformers reads.
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
        text = "\n".join(["#version: 0.2", *merges, ""])
        (folder / "merges.txt").write_text(text, encoding="utf-8", newline="\n")
        return CLIPTokenizer.from_pretrained(place, model_max_length=TOKENS)


def _letters() -> list[str]:
    """One printable character for each byte, in CLIP's order: the printable bytes themselves
    first, then 256, 257, ... for the others. Source: GPT-2's byte-level encoding.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = range(256, 256 + 256 - len(shown))
    return [chr(code) for code in (*shown, *others)]


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a diffusers folder. Raises ModelError."""
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"Cannot read the tokenizer in '{folder}': {error}.") from error


def read_text_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The text encoder of a diffusers folder, weights in any file form. Raises ModelError."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        raise ModelError(
            f"'{folder}' has a text encoder of type {kind!r}; only CLIP text models "
            "(clip_text_model) are supported. Download the model again."
        )
    return build_text_encoder(read_weights(folder), folder, CLIPTextConfig(**config), dtype)


def build_text_encoder(
    weights: Mapping[str, Tensor],
    source: Path,
    config: Any = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A CLIPTextModel of ``weights``, whose keys may begin with `text_model.` or not.

    ``config`` None means CLIP-L's activation and heads, with the sizes of the weights themselves.
    Raises ModelError for weights that are no CLIP text model.
    """
    plain = {
        key.removeprefix(PREFIX): value
        for key, value in weights.items()
        if not key.endswith(IGNORED)
    }
    config = config or _clip_l_config(plain, source)
    # transformers 5 dropped the prefix.
    named = CLIPTextModel(_one_layer(config)).state_dict()
    prefix = PREFIX if any(key.startswith(PREFIX) for key in named) else ""
    renamed = {prefix + key: value for key, value in plain.items()}
    return build_network(lambda: CLIPTextModel(config), renamed, source, dtype)


def _one_layer(config: Any) -> Any:
    """A minimal model of the same class, only to get the names of its weights."""
    return CLIPTextConfig(
        vocab_size=2,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _clip_l_config(plain: Mapping[str, Tensor], source: Path) -> Any:
    """CLIP-L as its weights describe it. Raises ModelError when they are not CLIP's."""
    words, places = (f"embeddings.{name}_embedding.weight" for name in ("token", "position"))
    layers = {key.split(".")[2] for key in plain if key.startswith("encoder.layers.")}
    first = "encoder.layers.0.mlp.fc1.weight"
    if not layers or any(key not in plain for key in (words, places, first)):
        raise ModelError(
            f"'{source}' has no complete CLIP text encoder; use a full Stable Diffusion 1.5 "
            "checkpoint."
        )
    vocabulary, width = plain[words].shape
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=plain[first].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=plain[places].shape[0],
        hidden_act="quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
