"""The decoder of the tiny autoencoder for Wan 2.1's latents, ``taew2_1`` or ``lighttaew2_1``.

Plain 2-D convolutions; each `Memory` block also sees the frame before. It works on normalised
latents and gives pixels from 0 to 1. Architecture: madebyollin/taehv (MIT), by the names of the
weights in its files.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import ModelError, build_network, file_keys, read_file

CHANNELS, COLOURS = 16, 3
WIDTHS = (256, 128, 64, 64)
GROWTH = (1, 2, 2)
"""Frames that each of the three stages makes of one."""
TRIMMED = 3
"""Frames at the start that stand for nothing: the first latent is one frame, and four are made."""
DECODER, LAST = "decoder.", "decoder.22.bias"
FIRSTS = (1, 8, 14, 20)
"""Places in the decoder of the convolutions that decide its widths."""
WANTED = "Use taew2_1.safetensors or lighttaew2_1.safetensors (models/vae_approx)."


class TinyVae(nn.Module):
    """Latents (B, 16, f, h, w), normalised, to clips (B, 3, 4 f - 3, 8 h, 8 w)."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        layers: list[nn.Module] = [Soften(), _conv(CHANNELS, widths[0]), nn.ReLU()]
        for width, after, growth in zip(widths, widths[1:], GROWTH, strict=False):
            layers += [Memory(width), Memory(width), Memory(width)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, growth)]
            layers.append(_conv(width, after, bias=False))
        layers += [nn.ReLU(), _conv(widths[-1], COLOURS)]
        self.decoder = nn.Sequential(*layers)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, latents: Tensor) -> Tensor:
        """Clips in about [-1, 1], not clamped; differentiable."""
        clips, (_, _, _, height, width) = len(latents), latents.shape
        x = latents.transpose(1, 2).flatten(0, 1)  # frames of one clip in a row
        for layer in self.decoder:
            x = layer(x, clips) if isinstance(layer, Memory) else layer(x)
        frames = x.view(clips, -1, COLOURS, 8 * height, 8 * width)
        return frames[:, TRIMMED:].transpose(1, 2) * 2 - 1


class Soften(nn.Module):
    """Brings latents smoothly into -3 .. 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Memory(nn.Module):
    """A residual block that sees each frame beside the one before it, nothing before the first."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, clips: int) -> Tensor:
        frames = x.view(clips, -1, *x.shape[1:])
        before = F.pad(frames[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class Grow(nn.Module):
    """``growth`` frames in a row out of each."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.conv = nn.Conv2d(width, growth * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(-1, *x.shape[1:])


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def is_tiny_vae(path: Path) -> bool:
    """Whether the file at ``path`` is a tiny VAE for Wan 2.1, by its name and its header."""
    return "taew2_1" in path.name.lower() and LAST in file_keys(path)


def read_tiny_vae(path: Path) -> nn.Module:
    """The decoder in the file at ``path``, in fp32; an encoder beside it is not read.

    Raises ModelError for a file that is none, or one for another model's latents.
    """
    if not path.is_file():
        raise ModelError(f"Tiny VAE '{path}' was not found, or is a folder. {WANTED}")
    weights = {k: v for k, v in read_file(path).items() if k.startswith(DECODER)}
    if LAST not in weights or f"{DECODER}1.weight" not in weights:
        raise ModelError(f"'{path}' is no tiny VAE of a video model. {WANTED}")
    channels = weights[f"{DECODER}1.weight"].shape[1]
    if channels != CHANNELS or path.stem.lower().startswith("taehv"):
        raise ModelError(
            f"'{path}' is the tiny VAE of another model ({channels} channels in latents); that of "
            f"Wan 2.1 and Wan 2.2 14B has {CHANNELS}. {WANTED}"
        )
    firsts = [f"{DECODER}{place}.weight" for place in FIRSTS]
    if missing := [name for name in firsts if name not in weights]:
        raise ModelError(f"'{path}' lacks {missing[0]}: it is not whole. Download it again.")
    widths = tuple(weights[name].shape[0] for name in firsts)
    return build_network(lambda: TinyVae(widths), weights, path)
