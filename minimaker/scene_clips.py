"""Labelled clips of the drawn world for the two small networks that look at it.

Each network renders its own from its own seed. They are rendered once and kept as uint8; a few
frames of a clip are enough to learn what is in a cell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.mini.reading import CELL
from trainer.mini.sentences import COLOURS, SHAPES
from trainer.mini.tracks import PARTS
from trainer.models.tiny_vae import TinyVae

from .footage import public_video
from .gallery import STYLES, Look, random_style
from .outlines import outline
from .paint import paint
from .scenes import FRAMES, SIZE, Scene, random_scene

PAIRED, TURNED = 0.5, 0.25
"""How often a clip of the training has two things, and a pan."""
COVERED = 0.25
"""Part of a cell that a thing must cover to be in it."""
SIDE = SIZE // CELL
LATENT_NOISE = 0.2


def random_look(scene: Scene) -> np.ndarray:
    """Every scene in a random style of its own, by the scene's seed."""
    return paint(scene, random_style(np.random.default_rng((scene.seed, 5))))


LOOKS: dict[str, Look] = {"public": public_video, "random": random_look, **STYLES}


@dataclass(frozen=True)
class SceneClips:
    """``frames`` (N, F, 128, 128, 3) uint8 and the clips' captions.

    ``cells`` (N, F, 16, 16) uint8 tells what is in each cell: 0 the ground, else
    1 + 6 shape + colour. ``pan`` (N, 2) is the camera's way in sides a frame of the whole clip.
    """

    frames: Tensor
    cells: Tensor
    pan: Tensor
    captions: list[str]

    def __len__(self) -> int:
        return len(self.frames)

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The clips of ``rows`` as (B, 3, F, H, W) float in [-1, 1]."""
        return self.frames[rows].permute(0, 4, 1, 2, 3).float() / 127.5 - 1

    def spread(self, kept: int) -> SceneClips:
        """The same clips with ``kept`` of their frames, evenly spread."""
        rows = np.linspace(0, self.frames.shape[1] - 1, kept).round().astype(int)
        return replace(self, frames=self.frames[:, rows], cells=self.cells[:, rows])


def render_scenes(
    seed: int, count: int, looks: Sequence[str | Look], length: int = FRAMES
) -> SceneClips:
    """``count`` clips of random scenes, of which ``length`` frames are drawn, in order; the looks
    take turns: names of `LOOKS` or callables.
    """
    rng = np.random.default_rng(seed)
    frames = np.empty((count, length, SIZE, SIZE, 3), np.uint8)
    cells = np.empty((count, length, SIDE, SIDE), np.uint8)
    pan, captions = np.empty((count, 2), np.float32), []
    for row in range(count):
        scene = training_scene(rng)
        look = looks[row % len(looks)]
        part = _some_frames(scene, np.sort(rng.permutation(FRAMES)[:length]))
        frames[row] = (LOOKS[look] if isinstance(look, str) else look)(part)
        cells[row] = cell_labels(part)
        pan[row] = scene.pan[1] - scene.pan[0]
        captions.append(scene.caption)
    stored = {"frames": frames, "cells": cells, "pan": pan}
    return SceneClips(
        **{name: torch.from_numpy(v) for name, v in stored.items()}, captions=captions
    )


def training_scene(rng: np.random.Generator) -> Scene:
    """A random scene, with two things and with a pan more often than in the world."""
    pair, turned = rng.random(2) < (PAIRED, TURNED)
    return random_scene(rng, pair=bool(pair), pan=bool(turned))


def _some_frames(scene: Scene, rows: np.ndarray) -> Scene:
    tracks = (replace(t, centres=t.centres[rows], radii=t.radii[rows]) for t in scene.tracks)
    return replace(scene, tracks=tuple(tracks), pan=scene.pan[rows])


def cell_labels(scene: Scene) -> np.ndarray:
    """(F, 16, 16) uint8 of what is in each cell: 0 the ground, else 1 + 6 shape + colour."""
    labels = np.zeros((scene.frames, SIDE, SIDE), np.uint8)
    for track in scene.tracks:
        kind = 1 + len(COLOURS) * SHAPES.index(track.thing.shape)
        kind += COLOURS.index(track.thing.colour)
        seen = scene.on_screen(track)
        for number in range(scene.frames):
            patch = outline(track, number, seen, 1)
            inside = np.zeros((SIZE, SIZE), np.float32)
            rows = np.arange(patch.top, patch.top + patch.distance.shape[0])
            columns = np.arange(patch.left, patch.left + patch.distance.shape[1])
            down, right = ((v >= 0) & (v < SIZE) for v in (rows, columns))
            box = patch.distance[down][:, right] < 0
            inside[np.ix_(rows[down], columns[right])] = box
            covered = inside.reshape(SIDE, CELL, SIDE, CELL).mean(axis=(1, 3))
            labels[number][covered >= COVERED] = kind
    return labels


def dense_loss(logits: Tensor, cells: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Loss of what is in every cell, and the share of cells that are right where a thing is.

    ``logits`` (N, 1 + 5 + 6, 16, 16) against ``cells`` (N, 16, 16) as `SceneClips` has them.
    """
    presence, shape, colour = logits.split(PARTS, dim=1)
    mask = cells > 0
    kind = cells[mask].long() - 1
    found = F.binary_cross_entropy_with_logits(presence[:, 0], mask.float())
    right = {"presence": ((presence[:, 0] > 0) == mask).float().mean().item()}
    loss = 2 * found
    for name, maps, target in (
        ("shape", shape, kind // len(COLOURS)),
        ("colour", colour, kind % len(COLOURS)),
    ):
        inside = maps.permute(0, 2, 3, 1)[mask]
        if len(inside):
            loss = loss + F.cross_entropy(inside, target, label_smoothing=0.02)
            right[name] = (inside.argmax(1) == target).float().mean().item()
    return loss, {name: round(value, 3) for name, value in right.items()}


@torch.no_grad()
def through_vae(vae: TinyVae, clips: SceneClips, noise: float = 0.0, seed: int = 0) -> SceneClips:
    """The clips after encoder and decoder, with up to ``noise`` deviations on the latents."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty_like(clips.frames)
    for row in range(len(clips)):
        latents = vae.encode(clips.pixels(slice(row, row + 1)))
        level = noise * torch.rand(1, generator=generator)
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        decoded = vae(latents)[0].clamp(-1, 1)
        out[row] = ((decoded + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
    return replace(clips, frames=out)


def cached_decoded(
    file: Path, vae: TinyVae, seed: int, count: int, looks: Sequence[str | Look], kept: int
) -> SceneClips:
    """``kept`` frames of each of ``count`` fresh clips through the autoencoder, stored in ``file``
    for a resumed run.
    """
    if not file.exists():
        clips = through_vae(vae, render_scenes(seed, count, looks), LATENT_NOISE, seed)
        clips = clips.spread(kept)
        tensors = {"frames": clips.frames.contiguous(), "cells": clips.cells.contiguous()}
        said = {"captions": json.dumps(clips.captions)}
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        save_file({**tensors, "pan": clips.pan}, temporary, metadata=said)
        temporary.replace(file)
    with safe_open(file, "pt") as stored:
        parts = {name: stored.get_tensor(name) for name in ("frames", "cells", "pan")}
        return SceneClips(**parts, captions=json.loads(stored.metadata()["captions"]))


def dense_batch(
    clips: SceneClips, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One frame (B, 3, 1, 128, 128) of each of the clips ``rows`` and its cells (B, 16, 16); half
    of them mirrored.
    """
    which = torch.randint(clips.frames.shape[1], (len(rows),), generator=generator)
    frames, cells = clips.frames[rows, which], clips.cells[rows, which]
    turn = torch.rand(len(rows), generator=generator) < 0.5
    frames = torch.where(turn[:, None, None, None], frames.flip(2), frames)
    cells = torch.where(turn[:, None, None], cells.flip(2), cells)
    return frames.permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1, cells
