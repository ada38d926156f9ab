"""The judge: a small classifier of mini clips that no training ever uses, so that it can measure
all of them.

It reads shape, colour and motion off a clip and gives features for Frechet and kernel distances.
Its seed, its data and its architecture differ from those of the frame network that the
discriminator is built on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from einops import rearrange
from torch import Tensor, nn

from ..paths import MINI
from .clips import (
    LOOKS,
    Clips,
    cached_decoded,
    dense_loss,
    load_weights,
    mirrored,
    read_cells,
    render_clips,
    roughen,
    save_weights,
    through_autoencoder,
)
from .looks import Look
from .stage import run_stage
from .world import COLOURS, FRAMES, MOTIONS, SHAPES

ATTRIBUTES = {"shape": len(SHAPES), "colour": len(COLOURS), "motion": len(MOTIONS)}
FEATURES = 64
FILE = "judge.safetensors"
BATCH = 16
RENDERED = 3600
DECODED = 600
_ATTENTION = 2
_MIX = ("public", "public", "other", "other", *LOOKS[1:4])  # the look of clip i is _MIX[i % 7]


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

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 32))
        self.body = nn.Sequential(_conv(32, 64, 2), _Residual(64))
        self.attention = nn.Conv2d(64, _ATTENTION, 1)
        self.content = nn.Linear(64 * (_ATTENTION + 2) + 32, FEATURES // 2)
        self.cells = nn.Conv2d(64, 1 + len(SHAPES) + len(COLOURS), 1)
        self.reduce = nn.Conv2d(64, 16, 1)
        self.track = nn.Sequential(
            _conv3d(18, 32, (1, 1, 1)), _conv3d(32, 48, (1, 2, 2)), _conv3d(48, 48, (2, 2, 2))
        )
        self.motion = nn.Linear(96, FEATURES // 2)
        sizes = {"shape": len(SHAPES), "colour": len(COLOURS), "look": len(LOOKS)}
        self.heads = nn.ModuleDict({k: nn.Linear(FEATURES // 2, n) for k, n in sizes.items()})
        self.heads["motion"] = nn.Linear(FEATURES // 2, len(MOTIONS))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        logits, _ = self.read(pixels)
        return {name: logits[name] for name in ATTRIBUTES}

    def look_logits(self, pixels: Tensor) -> Tensor:
        """Which of ``LOOKS`` the clips have: (B, 3, F, 64, 64) to (B, 5)."""
        return self.read(pixels)[0]["look"]

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


def train_judge(work: Path, vae: AutoencoderTiny | None, steps: int, seed: int = 101) -> Judge:
    """Train on rendered clips for two thirds of ``steps``, then with every second clip autoencoded.

    Resumable from ``work``. ``vae`` None leaves the second part out.
    """
    judge, first = build_judge(seed), steps * 2 // 3
    clean = render_clips(seed, RENDERED, _MIX)
    _stage("judge", judge, clean, work, first, seed, lr=3e-3)
    if vae is not None:
        file = work / "judge_decoded.safetensors"
        decoded = cached_decoded(file, vae, seed + 1, DECODED, FRAMES, _MIX)
        _stage("judge_decoded", judge, clean, work, steps - first, seed, lr=1.5e-3, decoded=decoded)
    return judge.eval()


def _stage(
    name: str,
    judge: Judge,
    clean: Clips,
    work: Path,
    steps: int,
    seed: int,
    *,
    lr: float,
    decoded: Clips | None = None,
) -> None:
    """One resumable stage; leaves the averaged weights in ``judge``."""
    clips = clean if decoded is None else clean.join(decoded)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.02)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(clean), (BATCH,), generator=generator)
        if decoded is not None:
            other = torch.randint(len(clean), len(clips), (BATCH // 2,), generator=generator)
            rows = torch.cat((rows[: BATCH // 2], other))
        pixels, labels = mirrored(clips, rows, generator)
        logits, cells = judge.read(roughen(pixels, generator))
        losses = {k: F.cross_entropy(v, labels[k], label_smoothing=0.02) for k, v in logits.items()}
        right = {k: (logits[k].argmax(1) == labels[k]).float().mean().item() for k in ATTRIBUTES}
        loss = losses["shape"] + losses["colour"] + losses["motion"] + 0.3 * losses["look"]
        loss = loss + dense_loss(cells, labels, pixels.shape[2])
        return loss, {k: round(v, 3) for k, v in right.items()}

    judge.train()
    ema = run_stage(name, judge, optimizer, loss_of, steps=steps, work=work, lr=lr, ema_decay=0.99)
    assert ema is not None
    judge.load_state_dict(ema.shadow)


@torch.no_grad()
def judge_accuracy(
    judge: Judge,
    looks: Mapping[str, Look] | Sequence[str | Look],
    count: int,
    seed: int,
    vae: AutoencoderTiny | None = None,
) -> dict[str, float]:
    """Share of ``count`` fresh clips read right, by attribute; with ``vae`` after autoencoding.

    ``looks`` are taken in turn: names of ``LOOKS`` or callables.
    """
    kinds = list(looks.values()) if isinstance(looks, Mapping) else list(looks)
    clips = render_clips(seed, count, kinds)
    if vae is not None:
        clips = through_autoencoder(vae, clips)
    right = dict.fromkeys(ATTRIBUTES, 0)
    for rows in torch.arange(count).split(64):
        for name, logits in judge(clips.pixels(rows)).items():
            right[name] += int((logits.argmax(1) == clips.labels[name][rows]).sum())
    return {name: hits / count for name, hits in right.items()}


def save_judge(judge: Judge, folder: Path | None = None) -> Path:
    """Write ``judge.safetensors`` (half precision) to ``folder``, by default the bundled assets."""
    file = (folder or MINI / "judge") / FILE
    save_weights(judge, file)
    return file


def load_judge(folder: Path | None = None) -> Judge:
    """The trained judge, frozen, from ``folder`` or the bundled assets."""
    judge = build_judge()
    load_weights(judge, (folder or MINI / "judge") / FILE)
    return judge
