"""The small Wan's words: a sentencepiece tokenizer that knows those of the world, and a UMT5 of two
layers that is trained together with the transformer.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
from transformers import UMT5Config, UMT5EncoderModel

from trainer.families.text import MaskedText
from trainer.mini.sentences import COLOURS, MOTIONS, SHAPES
from trainer.models.umt5 import TextTokenizer, folder_tokenizer

from .text import EXTRA_WORDS

PIECES = "spiece.model"
TOKENS = 40
"""What prompts are padded to: twice the longest sentence of the world."""
WIDTH = 128
VOCABULARY = 512


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
