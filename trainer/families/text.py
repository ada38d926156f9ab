"""The interface of a base model's text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..models.clip import clip_tokenizer, read_tokenizer
from ..paths import bundled


class TextReader(Protocol):
    """Turns prompts into the states that the network reads.

    Where an encoder has a mask, the states past a prompt's end are zero; nothing else says so.
    """

    encoder: Any

    @property
    def width(self) -> int:
        """D, the width of a state."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that are read, special ones included: L."""
        ...

    def count(self, prompt: str) -> int:
        """Tokens of ``prompt``, special ones included."""
        ...

    def tokens(self, prompt: str) -> list[int]:
        """The numbers of these tokens."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """States (B, L, D) on the encoder's device."""
        ...

    def pool(self, states: Tensor) -> Tensor:
        """One vector (B, D) of the states (B, L, D) of each prompt."""
        ...


class ClipText:
    """CLIP's text encoder with its tokenizer; the last hidden states, as diffusers takes them."""

    def __init__(self, encoder: Any, tokenizer: Any):
        self.encoder, self.tokenizer = encoder, tokenizer

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    @property
    def max_tokens(self) -> int:
        if self.tokenizer is None:  # a model as shapes alone
            return int(self.encoder.config.max_position_embeddings)
        return int(self.tokenizer.model_max_length)

    def count(self, prompt: str) -> int:
        return len(self.tokens(prompt))

    def tokens(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt, verbose=False).input_ids)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        device = next(self.encoder.parameters()).device
        return self.encoder(batch.input_ids.to(device)).last_hidden_state

    def pool(self, states: Tensor) -> Tensor:
        return states.mean(dim=1)


def unit_vectors(reader: TextReader, states: Tensor, empty: Tensor) -> Tensor:
    """Unit vectors (B, D) of prompts for the discriminator, of ``states`` (B, L, D).

    The pooled ``empty`` prompt (1, L, D) is subtracted: all prompts share it, and it would hide
    their differences.
    """
    origin = reader.pool(empty.float())
    return nn.functional.normalize(reader.pool(states.float()) - origin, dim=-1)


@lru_cache(maxsize=4)
def token_counter(model: str) -> tuple[Callable[[str], int], int]:
    """Counter of a prompt's tokens and the number that is read, for the name or path of a model.

    The tokenizer in the model's folder, or CLIP-L's for a checkpoint file. Raises ModelError.
    """
    folder = (bundled(model) or Path(model)) / "tokenizer"
    tokenizer = read_tokenizer(folder) if folder.is_dir() else clip_tokenizer()
    return lambda text: len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
