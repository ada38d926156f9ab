"""The ways to put two students into one model that `stacking.py` measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Update = dict[str, Tensor]
"""Module path -> what is added to its weight."""
Deltas = dict[str, Update]
"""The updates of the "first" and the "second" student, and of the "start" both were trained from:
the base model's own few-step LoRA, which knows no style."""
FEW = (1, 2, 4)


@dataclass(frozen=True)
class Mix:
    """One way: the ``weights`` it makes, or (None) what is done with both students' outputs."""

    group: str
    name: str
    weights: Callable[[Deltas], Update] | None = None
    outputs: str = ""
    """"mean": of both predictions in each step; "turns": one student a step; "blend": of the pixels
    of both finished clips."""
    steps: tuple[int, ...] = (4,)


def linear(deltas: Deltas, first: float = 0.0, second: float = 0.0, start: float = 0.0) -> Update:
    """Strengths as a LoRA loader takes them."""
    a, b, c = (deltas[name] for name in ("first", "second", "start"))
    return {path: first * a[path] + second * b[path] + start * c[path] for path in a}


def styles(deltas: Deltas, first: float, second: float) -> Update:
    """The common start once, and this much of each style part (student minus start)."""
    return linear(deltas, first, second, 1 - first - second)


def blocks(deltas: Deltas, up: str, rest: str) -> Update:
    """The blocks that draw (up) of one student, all others of the other."""
    return {p: deltas[up if p.startswith("up_blocks") else rest][p] for p in deltas["start"]}


def ties(deltas: Deltas) -> Update:
    """Style parts joined where their signs agree with the sum's (TIES, arXiv 2306.01708, without
    its trimming): the larger one's alone where they do not.
    """

    def join(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
        parts = torch.stack([first - start, second - start])
        chosen = parts * (parts.sign() == parts.sum(0).sign())
        return start + chosen.sum(0) / (chosen != 0).sum(0).clamp_min(1)

    names = ("start", "first", "second")
    return {path: join(*(deltas[name][path] for name in names)) for path in deltas["start"]}


def _one(name: str, strength: float) -> Callable[[Deltas], Update]:
    return partial(linear, **{name: strength})


def _stack(first: float, second: float) -> Callable[[Deltas], Update]:
    return partial(linear, first=first, second=second)


def _styles(first: float, second: float) -> Callable[[Deltas], Update]:
    return partial(styles, first=first, second=second)


def _blocks(up: str, rest: str) -> Callable[[Deltas], Update]:
    return partial(blocks, up=up, rest=rest)


ONE, STACKED, ONCE, JOINED, OUTPUTS = (
    "one LoRA",
    "stacked",
    "start counted once",
    "joined",
    "outputs",
)
MIXES = (
    Mix(ONE, "the start, no style", _one("start", 1.0)),
    Mix(ONE, "poster 1", _one("first", 1.0), steps=FEW),
    Mix(ONE, "poster 0.85", _one("first", 0.85)),
    Mix(ONE, "poster 0.7", _one("first", 0.7)),
    Mix(ONE, "poster 0.5", _one("first", 0.5)),
    Mix(ONE, "neon 1", _one("second", 1.0), steps=FEW),
    Mix(ONE, "neon 0.7", _one("second", 0.7)),
    Mix(STACKED, "poster 0.5 + neon 0.5", _stack(0.5, 0.5), steps=FEW),
    Mix(STACKED, "poster 0.7 + neon 0.3", _stack(0.7, 0.3)),
    Mix(STACKED, "poster 0.3 + neon 0.7", _stack(0.3, 0.7)),
    Mix(STACKED, "poster 0.7 + neon 0.7", _stack(0.7, 0.7)),
    Mix(STACKED, "poster 1 + neon 0.5", _stack(1.0, 0.5)),
    Mix(STACKED, "poster 1 + neon 1", _stack(1.0, 1.0), steps=FEW),
    Mix(ONCE, "poster 0.7 + neon 0.7", _styles(0.7, 0.7)),
    Mix(ONCE, "poster 1 + neon 1", _styles(1.0, 1.0), steps=FEW),
    Mix(ONCE, "poster 1.2 + neon 1.2", _styles(1.2, 1.2), steps=(2, 4)),
    Mix(ONCE, "poster 1.5 + neon 1.5", _styles(1.5, 1.5)),
    Mix(ONCE, "poster 1 + neon 0.5", _styles(1.0, 0.5)),
    Mix(JOINED, "where signs agree (TIES)", ties),
    Mix(JOINED, "up blocks of poster, the rest of neon", _blocks("first", "second")),
    Mix(JOINED, "up blocks of neon, the rest of poster", _blocks("second", "first")),
    Mix(OUTPUTS, "both predictions averaged in each step", outputs="mean", steps=FEW),
    Mix(OUTPUTS, "students take turns, poster first", outputs="turns"),
    Mix(OUTPUTS, "two finished clips averaged", outputs="blend"),
)
