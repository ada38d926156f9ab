"""The small Wan's words: a sentencepiece tokenizer that knows those of the world, and a UMT5 of two
layers that is trained together with the transformer.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import UMT5Config, UMT5EncoderModel

from trainer.families.text import MaskedText
from trainer.mini.sentences import COLOURS, MOTIONS, SHAPES, Thing, sentence, still_sentence
from trainer.models.umt5 import TextTokenizer, folder_tokenizer

from .scenes import random_scene
from .text import EXTRA_WORDS

PIECES = "spiece.model"
TOKENS = 40
"""What prompts are padded to: twice the longest sentence of the world."""
WIDTH = 128
VOCABULARY = 512
PAIRS, PANS = 96, 48
"""Prompts with two things, and with a camera that pans, beside all of one thing."""


def kept_pieces(folder: Path) -> TextTokenizer:
    """The tokenizer in ``folder``, learnt and saved there when there is none: other builds may
    differ.
    """
    file = folder / PIECES
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_learnt())
    return folder_tokenizer(folder)


def _learnt() -> bytes:
    """Every word of the world is one token, others are spelt by letters or bytes. Numbers as in
    UMT5: 0 pads, 1 ends, 2 is unknown.
    """
    known = {w for name in (*COLOURS, *SHAPES, *MOTIONS, EXTRA_WORDS) for w in name.split()}
    words = sorted(known | {"camera", "pans"})
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words)] * 20 + list("abcdefghijklmnopqrstuvwxyz ,.")),
        model_writer=made,
        vocab_size=VOCABULARY,
        model_type="unigram",
        user_defined_symbols=[f"▁{word}" for word in words],
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",  # capitals count as small letters
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return made.getvalue()


def build_encoder(seed: int = 0) -> UMT5EncoderModel:
    """An untrained UMT5 encoder of two layers, half a million parameters."""
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config)


class Reader(MaskedText):
    """The encoder in training with its tokenizer; states (B, 40, 128), zero past a prompt's end."""

    max_tokens = TOKENS

    def __init__(self, encoder: UMT5EncoderModel, tokenizer: TextTokenizer):
        super().__init__(encoder, tokenizer)

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.encode(prompts)


def prompt_lines(seed: int = 11) -> str:
    """Every caption with one thing, some with two and some with a pan, each with what one frame of
    it shows, in the format of a prompts file.
    """
    words = itertools.product(MOTIONS, SHAPES, COLOURS)
    texts = [sentence([Thing(shape, colour, motion)]) for motion, shape, colour in words]
    rng = np.random.default_rng(seed)
    texts += [random_scene(rng, pair=True, pan=False).caption for _ in range(PAIRS)]
    texts += [random_scene(rng, pair=False, pan=True).caption for _ in range(PANS)]
    lines = [f"{text}\t{still_sentence(text)}" for text in dict.fromkeys(texts)]
    return "\n".join(["# clip prompt, tab, what one frame shows", *lines]) + "\n"
