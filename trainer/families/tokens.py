"""How long a prompt is for a base model, without loading its networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ..models.clip import clip_tokenizer, read_tokenizer
from ..paths import MINI


@lru_cache(maxsize=4)
def token_counter(model: str) -> tuple[Callable[[str], int], int]:
    """Counter of a prompt's tokens and the number that is read, for "mini" or a model's path.

    The tokenizer in the model's folder, or CLIP-L's for a checkpoint file. Raises ModelError.
    """
    folder = (MINI if model == "mini" else Path(model)) / "tokenizer"
    tokenizer = read_tokenizer(folder) if folder.is_dir() else clip_tokenizer()
    return lambda text: len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
