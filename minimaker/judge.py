"""The training of the judge: a small classifier of mini clips that no other training ever uses, so
that it can measure all of them.

It recognises shape, colour and motion in a clip and gives features for Frechet and kernel
distances. Its seed, its data and its architecture differ from those of the frame network that the
discriminator is built on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from trainer.mini.networks import ATTRIBUTES, Judge, build_judge
from trainer.mini.words import LOOKS

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
from .world import FRAMES

BATCH = 16
RENDERED = 3600
DECODED = 600
_MIX = ("public", "public", "other", "other", *LOOKS[1:4])  # the look of clip i is _MIX[i % 7]


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
