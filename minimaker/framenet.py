"""The training of the frame network, which the mini model's discriminator and caption loss use.

A small ConvNet on single frames. It is frozen wherever it is used, but gradients flow through it to
the pixels, hence smooth activations and GroupNorm, which never couples the samples of a batch. The
judge shares neither its data nor its architecture.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from trainer.mini.networks import FrameNet, build_framenet, read_cells

from .clips import (
    Clips,
    cached_decoded,
    dense_loss,
    mirrored,
    render_clips,
    roughen,
    through_autoencoder,
)
from .looks import Look
from .stage import run_stage

BATCH = 64
RENDERED = 16000
DECODED = 2500
_MIX = ("public", "other", "other", "public", "other")  # it must not have seen the example styles


def train_framenet(
    work: Path, vae: AutoencoderTiny | None, steps: int, seed: int = 202
) -> FrameNet:
    """Train on rendered frames for two thirds of ``steps``, then with a third of them autoencoded.

    Resumable from ``work``. ``vae`` None leaves the second part out. Named styles are never shown:
    the discriminator must work with styles that its network has not seen, as with the large feature
    networks.
    """
    net, first = build_framenet(seed), steps * 2 // 3
    clean = render_clips(seed, RENDERED, _MIX, length=1)
    _stage("framenet", net, clean, work, first, seed, lr=3e-3)
    if vae is not None:
        file = work / "framenet_decoded.safetensors"
        decoded = cached_decoded(file, vae, seed + 1, DECODED, 1, _MIX)
        rest = steps - first
        _stage("framenet_decoded", net, clean, work, rest, seed, lr=1.5e-3, decoded=decoded)
    return net.eval()


def _stage(
    name: str,
    net: FrameNet,
    clean: Clips,
    work: Path,
    steps: int,
    seed: int,
    *,
    lr: float,
    decoded: Clips | None = None,
) -> None:
    """One resumable stage; leaves the averaged weights in ``net``."""
    clips = clean if decoded is None else clean.join(decoded)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(clean), (BATCH,), generator=generator)
        if decoded is not None:
            other = torch.randint(len(clean), len(clips), (BATCH // 3,), generator=generator)
            rows = torch.cat((rows[len(other) :], other))
        pixels, labels = mirrored(clips, rows, generator)
        cells = net.dense(roughen(pixels, generator).squeeze(2))
        logits = read_cells(cells, len(cells))
        losses = {k: F.cross_entropy(v, labels[k], label_smoothing=0.05) for k, v in logits.items()}
        right = {k: (v.argmax(1) == labels[k]).float().mean().item() for k, v in logits.items()}
        loss = losses["shape"] + losses["colour"] + dense_loss(cells, labels, 1)
        return loss, {k: round(v, 3) for k, v in right.items()}

    net.train()
    ema = run_stage(name, net, optimizer, loss_of, steps=steps, work=work, lr=lr, ema_decay=0.99)
    assert ema is not None
    net.load_state_dict(ema.shadow)


@torch.no_grad()
def framenet_accuracy(
    net: FrameNet, look: str | Look, count: int, seed: int, vae: AutoencoderTiny | None = None
) -> dict[str, float]:
    """Share of ``count`` fresh frames in ``look`` read right, with ``vae`` after autoencoding."""
    frames = render_clips(seed, count, [look], length=1)
    if vae is not None:
        frames = through_autoencoder(vae, frames)
    logits = net(frames.pixels().squeeze(2))
    return {k: float((v.argmax(1) == frames.labels[k]).float().mean()) for k, v in logits.items()}
