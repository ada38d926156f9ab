"""The frame network of the mini world as a feature network that also reads captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mini.reading import SceneReader, open_reader
from ..mini.words import parse_caption
from ..paths import BUNDLED, MINI
from .features import FeatureNetwork, resize_to_area


class SceneFeatures(FeatureNetwork):
    """Four maps of a frame network that reads captions.

    ``network`` offers ``stages(pixels)`` (four maps), ``channels``, its ``side`` in pixels, and
    ``score(pixels, captions)``.
    """

    name = BUNDLED
    reads = True

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        channels: Any = network.channels
        super().__init__(network, channels, dtype)
        side: Any = network.side
        self.side = side

    def prepare(self, pixels: Tensor) -> Tensor:
        return resize_to_area(pixels, self.side, 8)

    def maps(self, prepared: Tensor) -> list[Tensor]:
        network: Any = self.network
        return list(network.stages(prepared))

    def score_captions(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        """Cost (N,) of the captions, 0 for one without a word of the mini world. Raises
        ``ValueError`` when the counts of frames and captions differ.
        """
        network: Any = self.network
        return network.score(self.prepare(pixels).to(self.dtype), captions).float()


class MiniFeatures(SceneFeatures):
    """Four maps of the frame network of 64 px, and logits of shape and colour.

    ``network`` offers ``heads(pixels)`` (logits for "shape" and "colour") in place of a score.
    """

    def caption_logits(self, pixels: Tensor) -> dict[str, Tensor]:
        network: Any = self.network
        logits = network.heads(self.prepare(pixels).to(self.dtype))
        return {name: value.float() for name, value in logits.items()}

    def score_captions(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        """Cross entropy (N,) of the words in the captions, averaged over each caption's words.

        A caption without a word of the mini world costs 0. Raises ``ValueError`` when the counts of
        frames and captions differ.
        """
        if len(captions) != len(pixels):
            raise ValueError(
                f"{len(pixels)} frames came with {len(captions)} `captions`; give one per frame."
            )
        parsed = [parse_caption(text) for text in captions]
        losses, named = [], []
        for word, logits in self.caption_logits(pixels).items():
            found = [-100 if p[word] is None else p[word] for p in parsed]
            labels = torch.tensor(found, device=logits.device)
            losses.append(F.cross_entropy(logits, labels, reduction="none", ignore_index=-100))
            named.append(labels >= 0)
        return torch.stack(losses).sum(0) / torch.stack(named).sum(0).clamp(min=1)


def build_mini(path: Path | None, dtype: torch.dtype) -> FeatureNetwork:
    """From the folder ``path``, by default the bundled one. Raises FileNotFoundError."""
    network = open_reader(path or MINI / "framenet")
    kind = SceneFeatures if isinstance(network, SceneReader) else MiniFeatures
    return kind(network, dtype)
