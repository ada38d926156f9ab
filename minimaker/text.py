"""The mini model's words: a byte-level CLIP tokenizer with a small vocabulary, and a two-layer text
encoder.

Every word of the mini world is one token; any other text still tokenizes, letter by letter. Length
and special tokens are CLIP's (77, ``<|startoftext|>``, ``<|endoftext|>``), so ComfyUI's own CLIP
object can hold it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.mini.words import COLOURS, MOTIONS, SHAPES

TOKENS = 77
WIDTH = 64
EXTRA_WORDS = (
    "a an the of in on with and style look art picture image video clip frame still poster ink "
    "neon flat "
    "crisp drawing painting outline hatching glow dark light bright background black small "
    "large big shape "
    "slowly quickly up down left right"
)


def build_tokenizer() -> CLIPTokenizer:
    """Learn the merges from the world's words alone.

    Two builds may differ in the order of merges that are equally frequent, so a training keeps its
    own (`kept_tokenizer`).
    """
    words = sorted({w for name in (*COLOURS, *SHAPES, *MOTIONS, EXTRA_WORDS) for w in name.split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.BPEDecoder(suffix="</w>")
    learner = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(words, learner)
    model = json.loads(bpe.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    with tempfile.TemporaryDirectory() as folder:
        _write_vocabulary(Path(folder), vocabulary, merges)
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    return tokenizer


def _write_vocabulary(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, ...]]
) -> None:
    """The two files of the classic CLIP tokenizer, which every transformers version and ComfyUI
    read.
    """
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save ``tokenizer.json`` together with ``vocab.json`` and ``merges.txt``."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    _write_vocabulary(folder, model["vocab"], merges)


def kept_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in ``folder``, built and saved there when there is none."""
    if not (folder / "vocab.json").is_file():
        save_tokenizer(build_tokenizer(), folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """A randomly initialised CLIPTextModel of two layers, trained together with the UNet."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids (B, 77), padded and truncated as diffusers' pipelines do."""
    batch = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    return batch.input_ids
