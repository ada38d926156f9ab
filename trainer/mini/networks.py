"""The two small networks that look at frames of the mini world.

The frame network is the discriminator's feature network and scores captions in training. The judge
only measures; no training uses it, and its seed, data and architecture differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from .words import COLOURS, LOOKS, MOTIONS, SHAPES, SIZE, parse_caption

FRAMENET_FILE = "framenet.safetensors"
JUDGE_FILE = "judge.safetensors"
CELLS = {"shape": len(SHAPES), "colour": len(COLOURS)}
"""Kinds of words that are read from every cell of a frame, each with its number of words."""
ATTRIBUTES = {**CELLS, "motion": len(MOTIONS)}
"""What the judge recognises in a clip."""
WIDTHS = (16, 32, 48, 64)
FEATURES = 64
_ATTENTION = 2
_BATCH = 32
_NEED = "Run `python -m minimaker pretrain` to train the mini model's networks."


def read_cells(cells: Tensor, batch: int) -> dict[str, Tensor]:
    """Shape (B, 5) and colour (B, 6) logits, read where the shape is.

    ``cells`` (B * F, 12, 8, 8).
    """
    flat = rearrange(cells, "(b f) c h w -> b c (f h w)", b=batch)
    presence, shape, colour = flat.split((1, len(SHAPES), len(COLOURS)), dim=1)
    weight = presence.softmax(dim=2)
    return {"shape": (shape * weight).sum(2), "colour": (colour * weight).sum(2)}


class _Stage(nn.Module):
    """Halves the map, then adds a residual: (N, C, H, W) to (N, D, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 4, 2, 1)
        self.norm = nn.GroupNorm(4, outputs)
        self.wide = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.close = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.down(x))
        return x + self.close(F.gelu(self.wide(F.gelu(x)), approximate="tanh"))


class FrameNet(nn.Module):
    """Frames (N, 3, 64, 64) in [-1, 1] to maps of 32, 16, 8 and 4 pixels, and to caption logits."""

    channels = WIDTHS
    side = SIZE

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)
        self.blocks = nn.ModuleList(_Stage(a, b) for a, b in pairs)
        self.cells = nn.Conv2d(WIDTHS[2] + WIDTHS[3], 1 + sum(CELLS.values()), 1)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Maps (N, 16, 32, 32), (N, 32, 16, 16), (N, 48, 8, 8) and (N, 64, 4, 4)."""
        maps = []
        for block in self.blocks:
            pixels = block(pixels)
            maps.append(pixels)
        return maps

    def dense(self, pixels: Tensor) -> Tensor:
        """Logits (N, 1 + 5 + 6, 8, 8) of presence, shape and colour in every cell."""
        fine, coarse = self.stages(pixels)[2:]
        return self.cells(torch.cat((fine, F.interpolate(coarse, scale_factor=2.0)), dim=1))

    def heads(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits "shape" (N, 5) and "colour" (N, 6) in the order of ``SHAPES`` and ``COLOURS``."""
        return read_cells(self.dense(pixels), len(pixels))

    forward = heads


def build_framenet(seed: int = 202) -> FrameNet:
    """An untrained frame network; the same ``seed`` gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrameNet()


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _conv3d(inputs: int, outputs: int, stride: tuple[int, int, int]) -> nn.Sequential:
    conv = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Judge(nn.Module):
    """Clips (B, 3, F, 64, 64) in [-1, 1] to logits shape (B, 5), colour (B, 6), motion (B, 8).

    Shape and colour are read from peaks and from where attention over all frames and places looks,
    which learns to look at the frames where the shape is big; motion by 3-D convolutions over 8x8
    maps with coordinate channels.
    """

    side = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 32))
        self.body = nn.Sequential(_conv(32, 64, 2), _Residual(64))
        self.attention = nn.Conv2d(64, _ATTENTION, 1)
        self.content = nn.Linear(64 * (_ATTENTION + 2) + 32, FEATURES // 2)
        self.cells = nn.Conv2d(64, 1 + sum(CELLS.values()), 1)
        self.reduce = nn.Conv2d(64, 16, 1)
        self.track = nn.Sequential(
            _conv3d(18, 32, (1, 1, 1)), _conv3d(32, 48, (1, 2, 2)), _conv3d(48, 48, (2, 2, 2))
        )
        self.motion = nn.Linear(96, FEATURES // 2)
        sizes = {**CELLS, "look": len(LOOKS)}
        self.heads = nn.ModuleDict({k: nn.Linear(FEATURES // 2, n) for k, n in sizes.items()})
        self.heads["motion"] = nn.Linear(FEATURES // 2, len(MOTIONS))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        logits, _ = self.read(pixels)
        return {name: logits[name] for name in ATTRIBUTES}

    def read(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """All logits of clips (B, 3, F, 64, 64), and those of every cell (B * F, 12, 8, 8)."""
        stem, maps = self._maps(pixels)
        content, motion = self._features(stem, maps, len(pixels)).chunk(2, dim=1)
        cells = self.cells(maps)
        logits = {
            name: head(motion if name == "motion" else content) for name, head in self.heads.items()
        }
        for name, value in read_cells(cells, len(pixels)).items():
            logits[name] = logits[name] + value
        return logits, cells

    @torch.no_grad()
    def hits(self, clips: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """For each of `ATTRIBUTES` an array (B,): 1 where ``clips`` (B, 3, F, 64, 64) in [-1, 1]
        show what ``captions`` say, 0 where not, NaN where nothing is said. Raises ``ValueError``
        when the counts differ.
        """
        if len(clips) != len(captions):
            raise ValueError(
                f"{len(clips)} clips came with {len(captions)} captions; give one per clip."
            )
        parsed = [parse_caption(text) for text in captions]
        device = self.attention.weight.device
        logits = [self(part.to(device)) for part in clips.split(_BATCH)]
        hits = {}
        for name in ("colour", "shape", "motion"):
            seen = torch.cat([part[name].argmax(dim=1) for part in logits]).cpu().numpy()
            said = np.array([np.nan if p[name] is None else p[name] for p in parsed], np.float64)
            hits[name] = np.where(np.isnan(said), np.nan, (seen == said).astype(np.float64))
        return hits

    def video_features(self, pixels: Tensor) -> Tensor:
        """(B, 3, F, 64, 64) to (B, 64): half tells what is shown and its look, half the motion."""
        return self._features(*self._maps(pixels), len(pixels))

    def _maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.stem(rearrange(pixels, "b c f h w -> (b f) c h w"))
        return stem, self.body(stem)

    def _features(self, stem: Tensor, maps: Tensor, batch: int) -> Tensor:
        places = "(b f) c h w -> b c (f h w)"
        weights = rearrange(self.attention(maps), places, b=batch).softmax(dim=2)
        values = rearrange(maps, places, b=batch)
        seen = torch.einsum("bhp,bcp->bhc", weights, values).flatten(1)
        peaks = rearrange(maps.amax(dim=(2, 3)), "(b f) c -> b f c", b=batch)
        ground = rearrange(stem.mean(dim=(2, 3)), "(b f) c -> b f c", b=batch).mean(dim=1)
        parts = (seen, peaks.mean(dim=1), peaks.amax(dim=1), ground)
        content = F.silu(self.content(torch.cat(parts, dim=1)))
        return torch.cat((content, self._motion(maps, batch)), dim=1)

    def frame_features(self, pixels: Tensor) -> Tensor:
        """Frames (N, 3, 64, 64) to (N, 64): mean and deviation of 32 mid-level maps: the look."""
        variance, mean = torch.var_mean(self.stem(pixels), dim=(2, 3))
        return torch.cat((mean, (variance + 1e-4).sqrt()), dim=1)

    def _motion(self, maps: Tensor, batch: int) -> Tensor:
        place = torch.linspace(-1, 1, maps.shape[-1], device=maps.device, dtype=maps.dtype)
        y, x = torch.meshgrid(place, place, indexing="ij")
        grid = torch.stack((x, y)).expand(len(maps), -1, -1, -1)
        maps = torch.cat((self.reduce(maps), grid), dim=1)
        volume = self.track(rearrange(maps, "(b f) c h w -> b c f h w", b=batch))
        pooled = torch.cat((volume.mean(dim=(2, 3, 4)), volume.amax(dim=(2, 3, 4))), dim=1)
        return F.silu(self.motion(pooled))


def build_judge(seed: int = 101) -> Judge:
    """An untrained judge; the same ``seed`` gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Judge()


def load_framenet(folder: Path) -> FrameNet:
    """The trained network in ``folder``, frozen. Raises FileNotFoundError."""
    net = build_framenet()
    load_frozen(net, folder / FRAMENET_FILE, _NEED)
    return net


def load_judge(folder: Path) -> Judge:
    """The trained judge in ``folder``, frozen. Raises FileNotFoundError."""
    judge = build_judge()
    load_frozen(judge, folder / JUDGE_FILE, _NEED)
    return judge


def load_frozen(module: nn.Module, file: Path, remedy: str) -> None:
    """Fill ``module`` in float32 and freeze it; FileNotFoundError says the ``remedy``."""
    if not file.is_file():
        raise FileNotFoundError(f"The weights {file} are missing. {remedy}")
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}
    module.load_state_dict(state)
    module.eval().requires_grad_(False)
