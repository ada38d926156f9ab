"""The small Wan's autoencoder: taehv's architecture at narrow widths, on clips of the drawn world.

Latents (B, 16, f, 16, 16) of clips of 4 f - 3 frames at 128 px. The encoder starts as principal
components of cells of 8 x 8 px and four frames (`principal`), the decoder as their mean colour:
from a random start neither had learnt colours after hundreds of steps. Both learn on parts of
clips, 48 px and nine frames, since convolutions do not ask where they are; noise on the latents
makes the decoder forgiving.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.tiny_vae import CHANNELS, Grow, Memory, Pool, TinyVae

from .footage import random_clip
from .gallery import STYLES
from .muon import Muon
from .scenes import FRAMES, SIZE, Scene, random_scene
from .stage import run_stage

WIDTHS, ENCODER = (128, 64, 32, 24), 32
PART, PART_FRAMES = 48, 9
BATCH = 4
"""Parts in a step, each of a clip of its own."""
NAMED = 0.25
"""Share of parts in one of the named styles."""
LATENT_NOISE = 0.05
ENCODER_RATE = 0.5
"""Learning rate of the encoder, as a part of the decoder's."""
COLOURS, CELL, FOUR = 3, 8, 4
FAINT = 0.3
"""Smallest deviation of a latent channel; the first has 1."""


def build_autoencoder(seed: int = 0, clips: int = 40) -> TinyVae:
    """An untrained one, started from ``clips`` random clips; the same ``seed`` gives the same."""
    torch.manual_seed(seed)
    vae = TinyVae(WIDTHS, ENCODER)
    rng = np.random.default_rng((seed, 3))
    blocks = torch.cat([_blocks(random_part(rng)) for _ in range(clips)])
    initialise(vae, blocks)
    return vae


def _blocks(clip: Tensor) -> Tensor:
    """Cells (N, 4, 3, 8, 8) in 0..1 of the first frames of ``clip`` (3, F, H, W)."""
    frames = (clip[:, 1 : 1 + FOUR] + 1) / 2
    cells = frames.unfold(2, CELL, CELL).unfold(3, CELL, CELL)
    return cells.permute(2, 3, 1, 0, 4, 5).flatten(0, 1)


@torch.no_grad()
def initialise(vae: TinyVae, blocks: Tensor) -> None:
    """Encoder: principal components of ``blocks`` (N, 4, 3, 8, 8); decoder: the mean colour that
    they tell, at every place and frame of the cell, beside channels that start random.
    """
    assert vae.encoder is not None
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, Memory):
            last: Any = module.conv[-1]
            last.weight.zero_()
        elif isinstance(module, Grow):
            _carry_frames(module)
    principal(vae.encoder, blocks)
    clips = blocks.transpose(1, 2) * 2 - 1
    told = vae.encode(torch.cat([clips[:, :, :1], clips], 2))[:, :, 1, 0, 0]
    mean = blocks.mean(dim=(1, 3, 4))
    known = torch.cat([3 * torch.tanh(told / 3), torch.ones(len(told), 1)], 1)
    colour = torch.linalg.lstsq(known, mean).solution.T
    up = [m for m in vae.decoder if isinstance(m, nn.Conv2d)]
    up[-1].weight.mul_(0.1)
    for conv in up[1:]:
        _carry(conv, slice(1, 2))
    up[0].weight[:COLOURS] = 0
    up[0].weight[:COLOURS, :, 1, 1] = colour[:, :CHANNELS]
    assert up[0].bias is not None
    up[0].bias[:COLOURS] = colour[:, CHANNELS]


def _carry(conv: nn.Conv2d, taps: slice) -> None:
    """Colours of the output become those of the input, summed over ``taps``."""
    conv.weight[:COLOURS] = 0
    for channel in range(COLOURS):
        conv.weight[channel, channel, taps, taps] = 1


def _carry_frames(module: Grow) -> None:
    """Colours of each frame that is made become those of the one it is made of."""
    weight = module.conv.weight
    width = weight.shape[1]
    for channel in range(COLOURS):
        weight[channel::width] = 0
        weight[channel::width, channel] = 1


@torch.no_grad()
def principal(encoder: Any, blocks: Tensor) -> None:
    """Make ``encoder`` (nn.Sequential) the linear map to the principal components of ``blocks``
    (N, 4, 3, 8, 8).

    Stage by stage: 2 x 2 px of two frames exactly, 4 x 4 px of four frames in as many components
    as it is wide, then the cell in 16, each with a deviation that is the root of its share of the
    first one's. Blocks with a memory only lift values above zero.
    """
    pools: list[Any] = [m for m in encoder if isinstance(m, Pool)]
    halves: list[Any] = [m for m in encoder if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    lifts: list[Any] = [m.conv[-1] for m in encoder if isinstance(m, Memory)]
    for conv in (*(pool.conv for pool in pools), *halves, encoder[0], encoder[-1]):
        conv.weight.zero_()
    width = _exact_stage(encoder[0], pools[0], halves[0])
    ends = [1 + place for place, m in enumerate(encoder) if m in pools[1:]]

    pairs = _run(encoder, blocks, ends[0] - 1).unflatten(0, (-1, 2)).flatten(1, 2)
    weight, _ = _components(pairs.permute(0, 2, 3, 1).flatten(0, 2), width)
    pools[1].conv.weight.copy_(weight[..., None, None])
    pools[2].conv.weight[range(width), range(width), 0, 0] = 1
    for half, lift, end, count in zip(
        halves[1:], lifts[3::3], ends, (width, CHANNELS), strict=True
    ):
        given = _run(encoder, blocks, end).unfold(2, 2, 2).unfold(3, 2, 2)
        rows = given.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        weight, deviation = _components(rows, count)
        if count == CHANNELS:
            weight *= ((deviation / deviation[0]).sqrt().clamp(min=FAINT) / deviation)[:, None]
        half.weight[:count, :, 1:, 1:] = weight.view(count, width, 2, 2)
        made = _run(encoder, blocks, end + 1)
        lift.bias[:count] = 1 - made.amin(dim=(0, 2, 3))[:count]
    encoder[-1].weight[range(CHANNELS), range(CHANNELS), 1, 1] = 1
    made = _run(encoder, blocks, len(encoder) - 1)
    encoder[-1].bias.copy_(-made.mean(dim=(0, 2, 3))[:CHANNELS])


def _exact_stage(first: Any, pool: Any, half: Any) -> int:
    """Colours of 2 x 2 px and two frames into 24 channels of their own; the encoder's width."""
    width, pixels = first.weight.shape[0], 2 * COLOURS
    first.weight[range(COLOURS), range(COLOURS), 1, 1] = 1
    for frame in range(2):
        for colour in range(COLOURS):
            pool.conv.weight[COLOURS * frame + colour, width * frame + colour] = 1
    for place in range(4):
        for channel in range(pixels):
            half.weight[pixels * place + channel, channel, 1 + place // 2, 1 + place % 2] = 1
    return int(width)


def _run(encoder: Any, blocks: Tensor, upto: int) -> Tensor:
    """What the first ``upto`` layers make of each block: (N * frames, width, h, w)."""
    x = blocks.flatten(0, 1)
    for layer in encoder[:upto]:
        x = layer(x, len(blocks)) if isinstance(layer, Memory) else layer(x)
    return x


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` principal directions (count, D) of ``rows`` (N, D), and their deviations."""
    variance, directions = torch.linalg.eigh(torch.cov(rows.T.double()))
    chosen = directions.flip(1)[:, :count].T
    found = variance.flip(0)[:count].clamp(min=1e-12).sqrt()
    return chosen.float(), found.float()


def random_part(rng: np.random.Generator) -> Tensor:
    """A part (3, 9, 48, 48) of a fresh clip: poor video, a random style or a named one."""
    if rng.random() < NAMED:
        style = STYLES[sorted(STYLES)[rng.integers(len(STYLES))]]
        clip = to_clip(style(random_scene(rng, PART_FRAMES)))
    else:
        clip = to_clip(random_clip(rng, PART_FRAMES)[0])
    top, left = rng.integers(0, SIZE - PART + 1, 2)
    return clip[:, :, top : top + PART, left : left + PART]


def to_clip(frames: np.ndarray) -> Tensor:
    """uint8 frames (F, H, W, 3) to (3, F, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def train_half(vae: TinyVae, name: str, work: Path, steps: int, lr: float = 1e-3) -> None:
    """One resumable stage: "autoencoder" trains both halves, "decoder" that half alone, so that
    latents made before stay valid.
    """
    alone = name == "decoder"
    trained = vae.decoder if alone else vae
    groups: list[dict[str, Any]] = [{"params": list(vae.decoder.parameters())}]
    if not alone:
        assert vae.encoder is not None
        groups.append({"params": list(vae.encoder.parameters()), "scale": ENCODER_RATE})
    optimizer = Muon(groups, lr, weight_decay=1e-4)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((len(name), step))
        pixels = torch.stack([random_part(rng) for _ in range(BATCH)])
        noise = torch.Generator().manual_seed(len(name) * 1_000_003 + step)
        with torch.set_grad_enabled(not alone):
            latents = vae.encode(pixels)
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise)
        error = vae(noisy) - pixels
        return (error.square() + 0.1 * error.abs()).mean(), {
            "psnr": round(-10 * np.log10(error.square().mean().item() / 4), 2),
            "std": round(latents.std().item(), 3),
        }

    run_stage(
        name, trained, optimizer, loss_of, steps=steps, work=work, lr=lr, ema_decay=0.998
    )  # fmt: skip


def load_average(vae: TinyVae, name: str, work: Path) -> None:
    """The averaged weights of a stage, as far as it got in ``work``."""
    file = work / f"{name}.pt"
    if file.is_file():
        state = torch.load(file, weights_only=True, map_location="cpu")["ema"]
        (vae.decoder if name == "decoder" else vae).load_state_dict(state)


@torch.no_grad()
def reconstruction_psnr(
    vae: TinyVae, look: Callable[[Scene], np.ndarray], clips: int = 12, seed: int = 7
) -> float:
    """Peak signal-to-noise ratio in dB of fresh whole clips in ``look`` through the autoencoder."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(clips):
        clip = to_clip(look(random_scene(rng, FRAMES)))[None]
        errors.append((vae(vae.encode(clip)).clamp(-1, 1) - clip).square().mean().item())
    return float(10 * np.log10(4 / np.mean(errors)))
