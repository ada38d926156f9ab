"""Discriminator heads on frozen feature maps, conditioned on text.

After StyleGAN-T (Sauer et al. 2023, arXiv 2301.09515, section 3.2): a small spectrally normalised
head on each map, whose output is projected on the text embedding (Miyato and Koyama 2018). Two
things differ. GroupNorm stands in for batch norm, so that no sample's logits or gradients depend on
the others in its batch. And the convolutions are 2-D with logits averaged to a small grid, because
the maps of a convolutional network differ in size: without averaging, the shallowest map would give
three quarters of all logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LOGIT_GRID = 4
"""Each map gives at most ``LOGIT_GRID`` x ``LOGIT_GRID`` logits."""


def _block(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    groups = next((g for g in (8, 4, 2) if channels_out % (4 * g) == 0), 1)
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)),
        nn.GroupNorm(groups, channels_out),
        nn.LeakyReLU(0.2),
    )


class ResidualBlock(nn.Module):
    """``(x + block(x)) / sqrt(2)``: the sum of two signals keeps the variance of one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _block(channels, channels, 3)

    def forward(self, maps: Tensor) -> Tensor:
        return (maps + self.block(maps)) * 2**-0.5


class Head(nn.Module):
    """One feature map (N, C, h, w) -> text-space map (N, E, g_h, g_w), at most LOGIT_GRID wide."""

    def __init__(self, channels: int, head_channels: int, embedding: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(channels, head_channels, 1), ResidualBlock(head_channels))
        self.project = spectral_norm(nn.Conv2d(head_channels, embedding, 1))

    def forward(self, feature: Tensor) -> Tensor:
        projected = self.project(self.body(feature))
        grid = (min(LOGIT_GRID, projected.shape[-2]), min(LOGIT_GRID, projected.shape[-1]))
        # The projection on the text is linear, so averaging before it equals averaging the logits.
        return F.adaptive_avg_pool2d(projected, grid)


class Discriminator(nn.Module):
    """Text-conditional logits (N, k) of feature maps; any batch size, samples independent.

    ``channels`` of the feature maps (``FeatureNetwork.channels``), ``text_dim`` of the text
    vectors, ``head_channels`` of the trained heads. ``embed`` does nearly all of the work and does
    not use the text, so real maps are embedded once and judged with both their own and a mismatched
    text.
    """

    def __init__(
        self,
        channels: Sequence[int],
        text_dim: int,
        head_channels: int = 64,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c, head_channels, embedding) for c in channels)
        self.cmaps = nn.ModuleList(nn.Linear(text_dim, embedding) for _ in channels)
        self.text_dim = text_dim

    def embed(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps, each (N, C_i, h_i, w_i) -> maps in text space, each (N, E, cells_i).

        Raises ``ValueError`` when the number of maps is not the number of heads.
        """
        if len(features) != len(self.heads):
            raise ValueError(
                f"Got {len(features)} feature maps for {len(self.heads)} heads; build the "
                "discriminator with the `channels` of the same feature network."
            )
        dtype = next(self.cmaps.parameters()).dtype
        pairs = zip(self.heads, features, strict=True)
        return [head(feature.to(dtype)).flatten(2) for head, feature in pairs]

    def judge(self, embedded: Sequence[Tensor], text: Tensor) -> Tensor:
        """Embedded maps and text vectors (N, text_dim) -> logits (N, k), maps one after the other.

        Raises ``ValueError`` when ``text`` does not fit the maps.
        """
        expected = (len(embedded[0]), self.text_dim)
        if tuple(text.shape) != expected:
            raise ValueError(
                f"`text` must have the shape {expected}, one vector per frame, got "
                f"{tuple(text.shape)}; repeat the text of a clip for each of its frames."
            )
        # Text encoders differ in scale by orders of magnitude. Normalised per sample.
        text = F.layer_norm(text.to(embedded[0].dtype), text.shape[1:])
        logits = [
            torch.einsum("ne,nek->nk", cmap(text), cells) * cells.shape[1] ** -0.5
            for cmap, cells in zip(self.cmaps, embedded, strict=True)
        ]
        return torch.cat(logits, dim=1)

    def forward(self, features: Sequence[Tensor], text: Tensor) -> Tensor:
        """Feature maps (N, C_i, h_i, w_i) and text vectors (N, text_dim) -> logits (N, k)."""
        return self.judge(self.embed(features), text)
