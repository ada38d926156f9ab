"""Whether a clip shows what its caption says, as the mini world's judge sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..mini.words import parse_caption

ATTRIBUTES = ("colour", "shape", "motion")
BATCH = 32

Judging = Callable[[Tensor], dict[str, Tensor]]
"""Clips (B, 3, F, 64, 64) to logits by attribute, as ``trainer.mini.networks.Judge`` gives them."""


@torch.no_grad()
def caption_hits(
    judge: Judging, clips: Tensor, captions: Sequence[str], device: torch.device | None = None
) -> dict[str, np.ndarray]:
    """For each attribute an array (B,): 1 where the judge sees what the caption says, 0 where not.

    NaN where the caption names no such attribute. ``clips`` (B, 3, F, 64, 64) in [-1, 1];
    ``device`` is the judge's, by default that of the clips. Raises
    ``ValueError`` when there is not one caption a clip.
    """
    if len(clips) != len(captions):
        raise ValueError(
            f"{len(clips)} clips came with {len(captions)} captions; give one per clip."
        )
    parsed = [parse_caption(text) for text in captions]
    seen: dict[str, list[Tensor]] = {name: [] for name in ATTRIBUTES}
    for part in clips.split(BATCH):
        logits = judge(part if device is None else part.to(device))
        for name in ATTRIBUTES:
            seen[name].append(logits[name].argmax(dim=1).cpu())
    hits = {}
    for name in ATTRIBUTES:
        said = np.array([np.nan if p[name] is None else p[name] for p in parsed], dtype=np.float64)
        right = (torch.cat(seen[name]).numpy() == said).astype(np.float64)
        hits[name] = np.where(np.isnan(said), np.nan, right)
    return hits


def caption_accuracy(
    judge: Judging, clips: Tensor, captions: Sequence[str]
) -> dict[str, float | None]:
    """Share of clips (B, 3, F, 64, 64) whose "colour", "shape" and "motion" are as captioned.

    An attribute that a caption does not name is not counted; None where no caption names it.
    """
    hits = caption_hits(judge, clips, captions)
    return {k: None if np.isnan(v).all() else float(np.nanmean(v)) for k, v in hits.items()}
