"""UMT5, the text encoder of Wan: ComfyUI's single files with the tokenizer inside (fp16, fp8), and
diffusers folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from ..files import files_fingerprint
from .fp8 import build_fp8_network
from .weights import (
    ModelError,
    file_keys,
    read_file,
    read_json,
    read_weights,
    shapes_only,
    weight_files,
    with_contents,
)

TOKENIZER_KEY = "spiece_model"
PAD, END = 0, 1
EMBEDDING, TIED = "shared.weight", "encoder.embed_tokens.weight"
FIRST = "encoder.block.0.layer.0.SelfAttention."
SECOND = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
WANTED = (
    "Use umt5_xxl_fp8_e4m3fn_scaled.safetensors or umt5_xxl_fp16.safetensors, as ComfyUI does "
    "(models/text_encoders)."
)


class TextTokenizer(Protocol):
    """Turns a prompt into numbers, the last one `END`."""

    def ids(self, prompt: str) -> list[int]: ...

    def vocabulary(self) -> dict[str, int]: ...


class PieceTokenizer:
    """SentencePiece with the bytes of its model."""

    def __init__(self, model: bytes):
        self.processor = SentencePieceProcessor(model_proto=model)

    def ids(self, prompt: str) -> list[int]:
        return [*self.processor.encode(prompt), END]

    def vocabulary(self) -> dict[str, int]:
        count = self.processor.get_piece_size()
        return {self.processor.id_to_piece(number): number for number in range(count)}


class JsonTokenizer:
    """A tokenizer.json, as transformers saves it."""

    def __init__(self, file: Path):
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def ids(self, prompt: str) -> list[int]:
        return [*self.tokenizer.encode(prompt, add_special_tokens=False).ids, END]

    def vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()


@dataclass(frozen=True)
class Umt5:
    """A text encoder that was found whole, and its tokenizer; ``load`` reads its weights, frozen.

    ``fingerprint`` is one of its files; empty, and without a tokenizer, for a size without files.
    """

    config: Any
    tokenizer: TextTokenizer | None
    fingerprint: str
    load: Callable[[], nn.Module]


def open_umt5(path: Path, dtype: torch.dtype) -> Umt5:
    """What `read_umt5` reads, without its weights. Raises ModelError for all that it refuses."""
    with shapes_only():
        encoder, tokenizer = read_umt5(path, dtype)
    files = weight_files(path / "text_encoder") if path.is_dir() else [path]
    config: Any = encoder.config
    return Umt5(
        config,
        tokenizer,
        files_fingerprint(files),
        lambda: read_umt5(path, dtype)[0].requires_grad_(False),
    )


def read_umt5(path: Path, dtype: torch.dtype) -> tuple[nn.Module, TextTokenizer]:
    """Encoder and tokenizer of a single file, or of a diffusers folder with ``text_encoder`` and
    ``tokenizer``. Raises ModelError.
    """
    if path.is_dir():
        encoder = _from_folder(path / "text_encoder", dtype)
        return encoder, folder_tokenizer(path / "tokenizer")
    if not path.is_file():
        raise ModelError(f"Text encoder '{path}' was not found. {WANTED}")
    weights = read_file(path)
    config = config_of(weights, path)
    if weights.pop(TOKENIZER_KEY, None) is None:
        raise ModelError(
            f"'{path}' has no tokenizer inside (`{TOKENIZER_KEY}`): it is not made for ComfyUI. "
            f"{WANTED}"
        )
    return build_umt5(weights, config, path, dtype), file_tokenizer(path)


def is_umt5(path: Path) -> bool:
    """Whether the file at ``path`` is UMT5 with its tokenizer inside, by its header."""
    return {TOKENIZER_KEY, EMBEDDING, SECOND} <= set(file_keys(path))


def file_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer inside a text encoder file; nothing else of it is read. Raises ModelError."""
    with with_contents():
        found = read_file(path, lambda name: name == TOKENIZER_KEY)
    return _pieces(found[TOKENIZER_KEY], path)


def xxl_config() -> Any:
    """Of the published encoder of all Wans."""
    return UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )


def _from_folder(folder: Path, dtype: torch.dtype) -> nn.Module:
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "umt5":
        raise ModelError(f"'{folder}' has a text encoder of type {kind!r}, Wan needs UMT5.")
    return build_umt5(read_weights(folder), UMT5Config(**config), folder, dtype)


def folder_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer in the ``tokenizer`` folder of a diffusers model. Raises ModelError."""
    pieces, whole = folder / "spiece.model", folder / "tokenizer.json"
    if pieces.is_file():
        return _pieces(pieces.read_bytes(), pieces)
    if not whole.is_file():
        raise ModelError(
            f"'{folder}' holds neither {pieces.name} nor {whole.name}. Finish the download."
        )
    try:
        return JsonTokenizer(whole)
    except Exception as error:  # the only class that tokenizers raises
        raise ModelError(f"Cannot read the tokenizer '{whole}': {error}.") from error


def _pieces(model: Tensor | bytes, source: Path) -> TextTokenizer:
    content = model if isinstance(model, bytes) else model.contiguous().numpy().tobytes()
    try:
        return PieceTokenizer(content)
    except (RuntimeError, OSError) as error:
        raise ModelError(
            f"The tokenizer in '{source}' is damaged ({error}). Download it again."
        ) from error


def config_of(weights: Mapping[str, Tensor], source: Path) -> Any:
    """UMT5's config from the shapes of its encoder's weights. Raises ModelError for others."""
    _refuse_foreign(weights, source)
    try:
        vocabulary, width = weights[EMBEDDING].shape
        inner = weights[f"{FIRST}q.weight"].shape[0]
        buckets, heads = weights[f"{FIRST}relative_attention_bias.weight"].shape
        hidden = weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
    except KeyError as error:
        raise ModelError(
            f"'{source}' is not a UMT5 encoder, or not all of one: {error} is missing. {WANTED}"
        ) from error
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.block.")}
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=hidden,
        num_layers=len(layers),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )


def _refuse_foreign(weights: Mapping[str, Tensor], source: Path) -> None:
    several = any(name.startswith("encoder.block.1.") for name in weights)
    if "token_embedding.weight" in weights and "blocks.0.attn.q.weight" in weights:
        what = "UMT5 with the names of Wan's own repository, and without its tokenizer"
    elif FIRST + "q.weight" in weights and several and SECOND not in weights:
        what = "a T5 (of Flux, Stable Diffusion 3, LTX or Mochi), not UMT5"
    elif any("text_model." in name for name in weights):
        what = "a CLIP text encoder, not UMT5"
    elif any(name.startswith(("model.layers.", "language_model.")) for name in weights):
        what = "a language model, not UMT5"
    else:
        return
    raise ModelError(f"'{source}' is {what}. {WANTED}")


def build_umt5(
    weights: Mapping[str, Tensor], config: Any, source: Path, dtype: torch.dtype
) -> nn.Module:
    """The encoder with ``weights``, whose word embedding may be stored once or twice; fp8 layers
    keep fp8. Raises ModelError for others than its own.
    """
    whole = dict(weights)
    if EMBEDDING in whole:
        whole[TIED] = whole[EMBEDDING]
    elif TIED in whole:
        whole[EMBEDDING] = whole[TIED]
    encoder: Any = build_fp8_network(lambda: UMT5EncoderModel(config), whole, source, dtype)
    encoder.encoder.embed_tokens.weight = encoder.shared.weight
    return encoder.eval()
