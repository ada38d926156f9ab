"""The trainings of the two small networks that look at the drawn world: the reader, which the
discriminator and the captions' cost are built on, and the judge, which only measures.

They share neither data nor architecture. The reader never sees the named styles: the discriminator
must work with styles that its network has not seen, as with the large feature networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.mini.reading import (
    READ,
    SceneJudge,
    SceneReader,
    build_reader,
    build_scene_judge,
)
from trainer.mini.tracks import on_ground
from trainer.models.tiny_vae import TinyVae

from .clips import roughen
from .gallery import STYLES, Look
from .scene_clips import (
    SceneClips,
    cached_decoded,
    dense_batch,
    dense_loss,
    render_scenes,
    through_vae,
)
from .scene_tracks import TrackSet, cached_tracks, simulated_tracks
from .stage import run_stage

BATCH = 32
RENDERED, DRAWN = 4200, 2
"""Clips that are rendered for what is in a cell, and frames drawn of each."""
DECODED, KEPT = 280, 6
"""Clips through the autoencoder, and frames kept of each."""
WATCHED, SIMULATED = 560, 6000
"""Whole clips and simulated tracks for the judge's motions and pans."""
HEAD_STEPS, HEAD_BATCH = 1500, 96
READER_MIX = ("public", "random", "random", "public", "random")
JUDGE_MIX = ("public", "random", "public", "random", "random", *STYLES)


def train_reader(work: Path, vae: TinyVae | None, steps: int, seed: int = 204) -> SceneReader:
    """Train on drawn frames for two thirds of ``steps``, then with a third of them autoencoded.

    Resumable from ``work``. ``vae`` None leaves the second part out.
    """
    reader = build_reader(seed)
    _train_cells("reader", reader, READER_MIX, work, vae, steps, seed)
    return reader.eval()


def train_judge(work: Path, vae: TinyVae | None, steps: int, seed: int = 103) -> SceneJudge:
    """As `train_reader`; then the small networks for motions and pans, with the cells frozen."""
    judge = build_scene_judge(seed)
    _train_cells("judge", judge, JUDGE_MIX, work, vae, steps, seed)
    judge.eval()
    file = work / "judge_tracks.safetensors"
    tracks = cached_tracks(file, judge, seed + 2, WATCHED, JUDGE_MIX, vae)
    _train_heads(judge, tracks, simulated_tracks(seed + 3, SIMULATED), work, seed)
    return judge.eval()


def _train_cells(
    name: str,
    net: SceneReader | SceneJudge,
    mix: Sequence[str],
    work: Path,
    vae: TinyVae | None,
    steps: int,
    seed: int,
) -> None:
    first = steps if vae is None else steps * 2 // 3
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    clean = render_scenes(seed, RENDERED, mix, DRAWN)
    _stage(name, net, clean, None, work, first, seed, lr=4e-3)
    if vae is not None:
        file = work / f"{name}_clips.safetensors"
        decoded = cached_decoded(file, vae, seed + 1, DECODED, mix, KEPT)
        _stage(f"{name}_decoded", net, clean, decoded, work, steps - first, seed, lr=1.5e-3)
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _stage(
    name: str,
    net: SceneReader | SceneJudge,
    clean: SceneClips,
    decoded: SceneClips | None,
    work: Path,
    steps: int,
    seed: int,
    *,
    lr: float,
) -> None:
    """One resumable stage on single frames; leaves the averaged weights in ``net``."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    few = 0 if decoded is None else BATCH // 3

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(clean), (BATCH - few,), generator=generator)
        pixels, cells = dense_batch(clean, rows, generator)
        if decoded is not None:
            other = torch.randint(len(decoded), (few,), generator=generator)
            more = dense_batch(decoded, other, generator)
            pixels, cells = torch.cat((pixels, more[0])), torch.cat((cells, more[1]))
        pixels = roughen(pixels, generator).squeeze(2)
        return dense_loss(net.dense(pixels.contiguous(memory_format=torch.channels_last)), cells)

    _averaged(name, net, optimizer, loss_of, steps, work, lr)


def _train_heads(judge: SceneJudge, seen: TrackSet, drawn: TrackSet, work: Path, seed: int) -> None:
    """The judge's networks for motions and pans, on real and on simulated tracks."""
    heads = nn.ModuleList([judge.track, judge.moves, judge.motion])
    heads.extend([judge.ground, judge.camera, judge.speed])
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3, weight_decay=0.05)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        parts = [source.batch(HEAD_BATCH, generator) for source in (seen, drawn)]
        tracks, pan, motion = (torch.cat(part) for part in zip(*parts, strict=True))
        logits = judge.motion(judge.motion_features(on_ground(tracks, pan)))
        named = F.cross_entropy(logits, motion, label_smoothing=0.02)
        profile, wanted, gone = seen.pans(HEAD_BATCH, generator)
        camera, way = judge.pan(profile)
        told = F.cross_entropy(camera, wanted, label_smoothing=0.02)
        told = told + F.smooth_l1_loss(way * 64, gone * 64)
        right = (logits.argmax(1) == motion).float()
        return named + told, {
            "seen": round(right[:HEAD_BATCH].mean().item(), 3),
            "simulated": round(right[HEAD_BATCH:].mean().item(), 3),
            "camera": round((camera.argmax(1) == wanted).float().mean().item(), 3),
        }

    _averaged("judge_heads", heads, optimizer, loss_of, HEAD_STEPS, work, 3e-3)


def _averaged(name: str, module: nn.Module, optimizer, loss_of, steps: int, work: Path, lr: float):
    """Train and leave the averaged weights in ``module``."""
    module.train()
    ema = run_stage(name, module, optimizer, loss_of, steps=steps, work=work, lr=lr, ema_decay=0.99)
    assert ema is not None
    module.load_state_dict(ema.shadow)


@torch.no_grad()
def judge_accuracy(
    judge: SceneJudge,
    looks: Mapping[str, str | Look] | Sequence[str | Look],
    count: int,
    seed: int,
    vae: TinyVae | None = None,
) -> dict[str, float]:
    """Share of what ``count`` fresh clips show that is read right, by `READ`; with ``vae`` after
    autoencoding. ``looks`` are taken in turn.
    """
    kinds = list(looks.values()) if isinstance(looks, Mapping) else list(looks)
    clips = render_scenes(seed, count, kinds)
    if vae is not None:
        clips = through_vae(vae, clips)
    hits: dict[str, list[np.ndarray]] = {name: [] for name in READ}
    for rows in torch.arange(count).split(16):
        said = [clips.captions[row] for row in rows]
        for name, values in judge.hits(clips.pixels(rows), said).items():
            hits[name].append(values)
    return {name: float(np.nanmean(np.concatenate(values))) for name, values in hits.items()}
