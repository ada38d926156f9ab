"""What a step of the transformer's training sees: whole clips, single latents of clips, or windows
of single latents around their things.

One latent costs a fifth of a clip, and a window of 5 by 5 tokens again less than half of that, so
that outlines are learnt from ten times as many things for the same work, as patch-wise training
does (Wang et al. 2023, arXiv 2304.12526). Every token keeps its place in the whole clip.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from trainer.mini.sentences import parse_sentence

from .flow_clips import CELL, TOKEN, FlowClips
from .scenes import SIZE

SIDE, LATENTS = SIZE // TOKEN, 5
"""Tokens a side of a whole clip, and latents in time."""
CELLS = TOKEN // CELL
"""Cells a side of a token."""
WINDOW = 5
"""Tokens a side of a window."""
EMPTY_CAPTIONS = 0.1
ODDS = 3.0
"""Of whole clips and latents that show two things or a pan, against those of one thing alone, whose
look windows teach.
"""


class Part(NamedTuple):
    """Latents ``x0`` (B, 16, f, 2 h, 2 w), their captions, ``labels`` (B, f, 4 h, 4 w) of their
    cells, and ``places`` (1 or B, f h w) of their tokens among those of a whole clip.
    """

    x0: Tensor
    prompts: list[str]
    labels: Tensor
    places: Tensor

    def to(self, device: str) -> Part:
        """The same on ``device``."""
        x0, prompts, labels, places = self
        return Part(x0.to(device), prompts, labels.to(device), places.to(device))


class Placed(nn.Module):
    """Rotary positions of the tokens at ``places`` of a whole clip."""

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope
        self.places = torch.arange(LATENTS * SIDE**2)[None]

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1 or B, n, 1, 128), whatever the shape of ``states`` is."""
        whole = states.new_empty(1, 1, LATENTS, 2 * SIDE, 2 * SIDE)
        cosine, sine = (part[0, self.places] for part in self.rope(whole))
        return cosine, sine


class Parts:
    """Draws parts of ``clips``, some of them without their caption."""

    def __init__(self, clips: FlowClips):
        self._clips = clips
        said = map(parse_sentence, clips.captions)
        odds = np.array([ODDS if len(things) > 1 or camera else 1.0 for things, camera in said])
        self._odds = odds / odds.sum()
        things = (clips.labels > 0).unflatten(2, (-1, CELLS)).unflatten(4, (-1, CELLS))
        things = things.any(dim=5).any(dim=3)
        self._rows, self._columns = _span(things.any(dim=3)), _span(things.any(dim=2))
        fits = things.flatten(2).any(dim=2)
        for first, last in (self._rows, self._columns):
            fits &= last - first < WINDOW
        self._fits = fits.nonzero()
        """Clip and latent of what a window can hold (N, 2)."""

    def draw(self, kind: str, count: int, rng: np.random.Generator) -> Part:
        """``count`` parts: "whole" clips, also such of half the size, a "latent" or a "window"."""
        draws = {"whole": self._whole, "latent": self._latent, "window": self._window}
        return draws[kind](count, rng)

    def _whole(self, count: int, rng: np.random.Generator) -> Part:
        clips, rows = self._clips, self._drawn(count, rng)
        side = clips.latents.shape[3] // 2
        grid = torch.arange(side) * (SIDE // side)
        places = _places(torch.arange(LATENTS), grid[None], grid[None])
        x0, labels = clips.latents[rows].float(), clips.labels[rows].long()
        return Part(x0, self._said(rows, rng), labels, places.reshape(1, -1))

    def _latent(self, count: int, rng: np.random.Generator) -> Part:
        clips, rows = self._clips, self._drawn(count, rng)
        times = torch.from_numpy(rng.integers(LATENTS, size=count))
        x0 = clips.latents[rows, :, times][:, :, None].float()
        grid = torch.arange(SIDE)[None]
        labels = clips.labels[rows, times][:, None].long()
        return Part(x0, self._said(rows, rng), labels, _places(times, grid, grid))

    def _window(self, count: int, rng: np.random.Generator) -> Part:
        clips = self._clips
        rows, times = self._fits[torch.from_numpy(rng.integers(len(self._fits), size=count))].T
        top, left = (
            _corner(first[rows, times], last[rows, times], rng)
            for first, last in (self._rows, self._columns)
        )
        x0 = _cut(clips.latents[rows, :, times], top, left, 2)[:, :, None].float()
        labels = _cut(clips.labels[rows, times][:, None], top, left, CELLS).long()
        ahead = torch.arange(WINDOW)
        places = _places(times, top[:, None] + ahead, left[:, None] + ahead)
        return Part(x0, self._said(rows.numpy(), rng), labels, places)

    def _drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(len(self._odds), size=count, p=self._odds)

    def _said(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        empty = rng.random(len(rows)) < EMPTY_CAPTIONS
        captions = self._clips.captions
        return ["" if e else captions[row] for row, e in zip(rows, empty, strict=True)]


def _span(held: Tensor) -> tuple[Tensor, Tensor]:
    """First and last of those that are true in ``held`` (N, f, n), each (N, f)."""
    place = torch.arange(held.shape[2])
    return torch.where(held, place, SIDE).amin(dim=2), torch.where(held, place, -1).amax(dim=2)


def _corner(first: Tensor, last: Tensor, rng: np.random.Generator) -> Tensor:
    """Where windows begin that hold the tokens from ``first`` to ``last`` (B,)."""
    low, high = (last - WINDOW + 1).clamp(min=0), first.clamp(max=SIDE - WINDOW)
    return low + (torch.from_numpy(rng.random(len(low))) * (high - low + 1)).long()


def _cut(values: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Windows of ``values`` (B, c, h, w) with ``size`` values a side of a token."""
    part = torch.arange(WINDOW * size)
    y, x = (size * corner[:, None] + part for corner in (top, left))
    row = torch.arange(len(values))[:, None, None]
    return rearrange(values[row, :, y[:, :, None], x[:, None]], "b h w c -> b c h w")


def _places(times: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of the tokens of each of ``times`` (n,) in its ``rows`` and ``columns`` (1 or n, m): (n, m
    m).
    """
    grid = SIDE * rows[:, :, None] + columns[:, None]
    return (SIDE**2 * times[:, None, None] + grid).flatten(1)
