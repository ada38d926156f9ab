"""The tiny autoencoder for Wan 2.1's latents, ``taew2_1`` or ``lighttaew2_1``.

Plain 2-D convolutions; each `Memory` block also sees the frame before. It works on normalised
latents and on pixels from 0 to 1. Architecture: madebyollin/taehv (MIT), by the names of the
weights in its files. Beside Wan's exact VAE only the decoder is read; the embedded small Wan has
this autoencoder alone, at narrower widths.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import ModelError, build_network, file_keys, read_file

CHANNELS, COLOURS = 16, 3
WIDTHS = (256, 128, 64, 64)
GROWTH = (1, 2, 2)
"""Frames that each of the decoder's three stages makes of one."""
POOLING = (2, 2, 1)
"""Frames that each of the encoder's three stages makes one of."""
TRIMMED = 3
"""Frames at the start that stand for nothing: the first latent is one frame, and four are made."""
LAST_STAGE = 8
"""Layers from the decoder's third stage on: three memories, larger, more frames, three others."""
DECODER, LAST = "decoder.", "decoder.22.bias"
ENCODER, FIRST = "encoder.", "encoder.0.weight"
FIRSTS = (1, 8, 14, 20)
"""Places in the decoder of the convolutions that decide its widths."""
WANTED = "Use taew2_1.safetensors or lighttaew2_1.safetensors (models/vae_approx)."


class TinyVae(nn.Module):
    """Latents (B, 16, f, h, w), normalised, to clips (B, 3, 4 f - 3, 8 h, 8 w), and back where it
    has an ``encoder`` of that width.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, encoder: int | None = None):
        super().__init__()
        layers: list[nn.Module] = [Soften(), _conv(CHANNELS, widths[0]), nn.ReLU()]
        for width, after, growth in zip(widths, widths[1:], GROWTH, strict=False):
            layers += [Memory(width), Memory(width), Memory(width)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, growth)]
            layers.append(_conv(width, after, bias=False))
        layers += [nn.ReLU(), _conv(widths[-1], COLOURS)]
        self.decoder = nn.Sequential(*layers)
        self.encoder = None if encoder is None else _encoder(encoder)

    @property
    def has_encoder(self) -> bool:
        return self.encoder is not None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, latents: Tensor) -> Tensor:
        """Clips in about [-1, 1], not clamped; differentiable."""
        clips = len(latents)
        frames = _through(self.decoder, latents).unflatten(0, (clips, -1))
        return frames[:, TRIMMED:].transpose(1, 2) * 2 - 1

    def frame(self, latents: Tensor, frames: Tensor) -> Tensor:
        """Frame ``frames`` (N,) of each clip that `forward` makes of ``latents`` (N, 16, f, h, w):
        (N, 3, 8 h, 8 w). Of the last stage, only what these frames depend on is computed.
        """
        clips, places = len(latents), frames + TRIMMED
        *memories, enlarge, grow, narrow, rectify, colour = self.decoder[-LAST_STAGE:]
        made = _through(self.decoder[:-LAST_STAGE], latents).unflatten(0, (clips, -1))
        x, there = _until(made, places // GROWTH[-1], len(memories) + 1)
        for memory in memories:
            x = memory(x.flatten(0, 1), clips).unflatten(0, (clips, -1))[:, 1:]
            x = x * there[:, -x.shape[1] :]
        grown = grow(enlarge(x.flatten(0, 1))).unflatten(0, (clips, -1))
        wanted, _ = _until(grown, places % GROWTH[-1], 1)
        return colour(rectify(narrow(wanted[:, 0]))) * 2 - 1

    def encode(self, clips: Tensor) -> Tensor:
        """Normalised latents (B, 16, f, h, w) of clips (B, 3, 4 f - 3, 8 h, 8 w) in [-1, 1];
        differentiable. The first frame stands three times more before the clip, so that each latent
        holds the frames that are decoded from it.
        """
        if self.encoder is None:
            raise ValueError("This tiny VAE was read without its encoder.")
        clips = torch.cat([clips[:, :, :1].expand(-1, -1, TRIMMED, -1, -1), clips], 2)
        latents = _through(self.encoder, (clips + 1) / 2)
        return latents.unflatten(0, (len(clips), -1)).transpose(1, 2)


def _through(layers: nn.Sequential, clips: Tensor) -> Tensor:
    """All frames of ``clips`` (B, C, F, H, W), those of one clip in a row, through ``layers``."""
    count, x = len(clips), clips.transpose(1, 2).flatten(0, 1)
    for layer in layers:
        x = layer(x, count) if isinstance(layer, Memory) else layer(x)
    return x


def _until(frames: Tensor, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` frames that end with frame ``last`` (N,) of ``frames`` (N, F, C, h, w), and
    which of them there are (N, count, 1, 1, 1): those before the first are zeros.
    """
    places = last[:, None] + torch.arange(1 - count, 1, device=last.device)
    there = (places >= 0).to(frames.dtype)[..., None, None, None]
    index = places.clamp(min=0)[..., None, None, None].expand(-1, -1, *frames.shape[2:])
    return frames.gather(1, index) * there, there


def _encoder(width: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(COLOURS, width), nn.ReLU()]
    for pooling in POOLING:
        half = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        layers += [Pool(width, pooling), half, Memory(width), Memory(width), Memory(width)]
    return nn.Sequential(*layers, _conv(width, CHANNELS))


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
        frames = x.unflatten(0, (clips, -1))
        before = F.pad(frames[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class Grow(nn.Module):
    """``growth`` frames in a row out of each."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.conv = nn.Conv2d(width, growth * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class Pool(nn.Module):
    """One frame out of each ``pooling`` frames in a row."""

    def __init__(self, width: int, pooling: int):
        super().__init__()
        self.conv = nn.Conv2d(pooling * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.conv.in_channels, *x.shape[2:]))


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def is_tiny_vae(path: Path) -> bool:
    """Whether the file at ``path`` is a tiny VAE for Wan 2.1, by its name and its header."""
    return "taew2_1" in path.name.lower() and LAST in file_keys(path)


def read_tiny_vae(path: Path, encoder: bool = False) -> TinyVae:
    """The decoder in the file at ``path``, in fp32, with its ``encoder`` where that is wanted.

    Raises ModelError for a file that is none, or one for another model's latents.
    """
    if not path.is_file():
        raise ModelError(f"Tiny VAE '{path}' was not found, or is a folder. {WANTED}")
    parts = (DECODER, ENCODER) if encoder else (DECODER,)
    weights = {k: v for k, v in read_file(path).items() if k.startswith(parts)}
    if LAST not in weights or f"{DECODER}1.weight" not in weights:
        raise ModelError(f"'{path}' is no tiny VAE of a video model. {WANTED}")
    channels = weights[f"{DECODER}1.weight"].shape[1]
    if channels != CHANNELS or path.stem.lower().startswith("taehv"):
        raise ModelError(
            f"'{path}' is the tiny VAE of another model ({channels} channels in latents); that of "
            f"Wan 2.1 and Wan 2.2 14B has {CHANNELS}. {WANTED}"
        )
    firsts = [f"{DECODER}{place}.weight" for place in FIRSTS] + [FIRST] * encoder
    if missing := [name for name in firsts if name not in weights]:
        raise ModelError(f"'{path}' lacks {missing[0]}: it is not whole. Download it again.")
    widths = tuple(weights[f"{DECODER}{place}.weight"].shape[0] for place in FIRSTS)
    width = weights[FIRST].shape[0] if encoder else None
    return cast(TinyVae, build_network(lambda: TinyVae(widths, width), weights, path))
