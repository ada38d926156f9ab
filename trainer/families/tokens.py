"""Counts a prompt's tokens for a base model, without loading its networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ..models.clip import clip_tokenizer, read_tokenizer
from ..paths import bundled


@lru_cache(maxsize=4)
def token_counter(model: str) -> tuple[Callable[[str], int], int]:
    """Counter of a prompt's tokens and the number that is read, for the name or path of a model.

    The tokenizer in the model's folder, or CLIP-L's for a checkpoint file. Raises ModelError.
    """
    folder = (bundled(model) or Path(model)) / "tokenizer"
    tokenizer = read_tokenizer(folder) if folder.is_dir() else clip_tokenizer()
    return lambda text: len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
