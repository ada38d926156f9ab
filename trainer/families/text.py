"""The interface of a base model's text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models.clip import clip_tokenizer, read_tokenizer
from ..models.umt5 import END, PAD, TextTokenizer, Umt5


class TextReader(Protocol):
    """Turns prompts into the states that the network reads.

    Where an encoder has a mask, the states past a prompt's end are zero; nothing else says so.
    """

    @property
    def encoder(self) -> Any:
        """Read now where it is not in memory yet."""
        ...

    @property
    def loaded(self) -> nn.Module | None:
        """The encoder, None where it is not in memory."""
        ...

    def release(self) -> None:
        """Let the encoder go, where it can be read again."""
        ...

    @property
    def config(self) -> Any:
        """What the encoder is built like."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the encoder's weights, for states that are kept on disk; empty where none are: the
        encoder is small and stays in memory.
        """
        ...

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

    fingerprint = ""

    def __init__(self, encoder: Any, tokenizer: Any):
        self.encoder, self.tokenizer = encoder, tokenizer

    @property
    def loaded(self) -> nn.Module:
        return self.encoder

    def release(self) -> None:
        """Stays in memory."""

    @property
    def config(self) -> Any:
        return self.encoder.config

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


class MaskedText:
    """UMT5 with its tokenizer. States past a prompt's end are zero; the network reads those too.

    With a ``source`` the encoder is read when a prompt needs it and can be let go: it is several
    times as large as a small transformer.
    """

    max_tokens = 512
    """Of every published Wan."""

    def __init__(self, encoder: Any, tokenizer: TextTokenizer | None, source: Umt5 | None = None):
        self.tokenizer, self.source = tokenizer, source
        self._encoder = encoder

    @classmethod
    def of(cls, source: Umt5, max_tokens: int = max_tokens) -> MaskedText:
        """One whose encoder is not in memory yet."""
        made = cls(None, source.tokenizer, source)
        made.max_tokens = max_tokens
        return made

    @property
    def encoder(self) -> Any:
        if self._encoder is None:
            assert self.source is not None
            self._encoder = self.source.load()
        return self._encoder

    @property
    def loaded(self) -> nn.Module | None:
        return self._encoder

    def release(self) -> None:
        if self.source is not None:
            self._encoder = None

    @property
    def config(self) -> Any:
        return self._encoder.config if self.source is None else self.source.config

    @property
    def fingerprint(self) -> str:
        return "" if self.source is None else self.source.fingerprint

    @property
    def width(self) -> int:
        return int(self.config.d_model)

    def count(self, prompt: str) -> int:
        return len(self.tokens(prompt))

    def tokens(self, prompt: str) -> list[int]:
        assert self.tokenizer is not None, "a model as shapes alone reads no prompts"
        return self.tokenizer.ids(prompt)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        rows = [self._cut(self.tokens(prompt)) for prompt in prompts]
        longest = max(map(len, rows))  # zeros need no encoder
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        device = next(self.encoder.parameters()).device
        mask = mask.to(device)
        states = self.encoder(ids.to(device), attention_mask=mask).last_hidden_state
        states = states * mask[..., None].to(states.dtype)
        return nn.functional.pad(states, (0, 0, 0, self.max_tokens - longest))

    def _cut(self, tokens: list[int]) -> list[int]:
        return tokens if len(tokens) <= self.max_tokens else [*tokens[: self.max_tokens - 1], END]

    def pool(self, states: Tensor) -> Tensor:
        """The mean of the states up to a prompt's end."""
        said = (states != 0).any(-1, keepdim=True).to(states.dtype)
        return (states * said).sum(1) / said.sum(1).clamp(min=1)


def padded(states: Tensor, length: int) -> Tensor:
    """``states`` (L, D) with zeros up to ``length``."""
    return nn.functional.pad(states, (0, 0, 0, length - len(states)))


def unit_vectors(reader: TextReader, states: Tensor, empty: Tensor) -> Tensor:
    """Unit vectors (B, D) of prompts for the discriminator, of ``states`` (B, L, D).

    The pooled ``empty`` prompt (1, L, D) is subtracted: all prompts share it, and it would hide
    their differences.
    """
    origin = reader.pool(empty.float())
    return nn.functional.normalize(reader.pool(states.float()) - origin, dim=-1)


def clip_counter(path: Path) -> tuple[Callable[[str], int], int]:
    """Counter of a prompt's tokens and the number that is read: by the tokenizer in the model's
    folder ``path``, or CLIP-L's for a checkpoint file. Raises ModelError.
    """
    folder = path / "tokenizer"
    tokenizer = read_tokenizer(folder) if folder.is_dir() else clip_tokenizer()
    return lambda text: len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
