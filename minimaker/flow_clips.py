"""Clips of poor video as the small Wan's teacher reads them: encoded once and kept in shards.

At 128 px, and at half that size, where a step costs a quarter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from trainer.mini.sentences import COLOURS, SHAPES
from trainer.models.tiny_vae import TinyVae

from .causal import to_clip
from .footage import public_video
from .outlines import ROUNDING, shape_distance
from .scenes import FRAMES, SIZE, Scene, random_scene

SHARD = 200
TOKEN, CELL = 16, 4
"""Pixels a side of what one token of the transformer stands for, and of what has one label."""
Painting = Callable[[list[Scene]], Iterable[np.ndarray]]
"""Renders scenes, in order."""


@dataclass(frozen=True)
class FlowClips:
    """``latents`` (N, 16, 5, h, h) fp16, their captions, and ``labels`` (N, 5, 2 h, 2 h) uint8:
    what is in each cell of 4 px, 0 for the ground, else 1 + 6 shape + colour.
    """

    latents: Tensor
    captions: list[str]
    labels: Tensor


def encode_clips(
    vae: TinyVae,
    work: Path,
    shards: int,
    size: int = SIZE,
    seed: int = 1000,
    device: str = "cpu",
    painters: int = 0,
) -> list[Path]:
    """Render and encode what is missing of ``shards`` shards of clips of ``size`` px; the files.

    ``device`` encodes; that many ``painters``, processes of their own, render.
    """
    files = [work / f"flow-clips-{size}-{index:03d}.safetensors" for index in range(shards)]
    missing = [(file, seed + index) for index, file in enumerate(files) if not file.exists()]
    with _painting(painters if missing else 0) as paint_all:
        vae.to(device)
        for file, own in missing:
            _encode_shard(vae, file, size, own, paint_all)
        vae.cpu()
    return files


@contextmanager
def _painting(painters: int) -> Iterator[Painting]:
    """A function that renders scenes as public video, in order."""
    if not painters:
        yield partial(map, public_video)
        return
    with get_context("spawn").Pool(painters) as pool:
        yield partial(pool.imap, public_video, chunksize=4)


@torch.no_grad()
def _encode_shard(vae: TinyVae, file: Path, size: int, seed: int, paint_all: Painting) -> None:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, FRAMES) for _ in range(SHARD)]
    device = next(vae.parameters()).device
    latents = []
    for frames in tqdm(paint_all(scenes), total=SHARD, desc=file.stem, mininterval=10):
        clip = to_clip(resized(frames, size))[None].to(device)
        latents.append(vae.encode(clip)[0].half().cpu())
    labels = np.stack([cell_labels(scene, size) for scene in scenes])
    tensors = {"latents": torch.stack(latents), "labels": torch.from_numpy(labels)}
    captions = json.dumps([scene.caption for scene in scenes])
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"captions": captions})
    temporary.replace(file)


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """``frames`` (F, H, W, 3) uint8 as squares of ``size`` px, by areas."""
    if frames.shape[1:3] == (size, size):
        return frames
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in frames])


def cell_labels(scene: Scene, size: int = SIZE) -> np.ndarray:
    """(5, c, c) uint8 of what is in the middle of each cell of a clip of ``size`` = 4 c px, at the
    middle of each latent's frames: 0 for the ground, else 1 + 6 shape + colour.
    """
    frames = [0, *range(3, scene.frames, 4)]
    side = size // CELL
    place = ((np.arange(side) + 0.5) / side).astype(np.float32)
    labels = np.zeros((len(frames), side, side), np.uint8)
    for track in scene.tracks:
        thing = track.thing
        kind = 1 + len(COLOURS) * SHAPES.index(thing.shape) + COLOURS.index(thing.colour)
        cos, sin = np.float32(np.cos(track.angle)), np.float32(np.sin(track.angle))
        for picture, frame in zip(labels, frames, strict=True):
            across, down = scene.on_screen(track)[frame].astype(np.float32)
            x, y = place[None] - across, place[:, None] - down
            turned = cos * x + sin * y, cos * y - sin * x
            distance = shape_distance(thing.shape, *turned, float(track.radii[frame]), ROUNDING)
            picture[distance < 0] = kind
    return labels


def load_clips(files: list[Path]) -> FlowClips:
    """All shards in memory, 46 KiB a clip of 128 px."""
    latents, captions, labels = [], [], []
    for file in files:
        with safe_open(file, "pt") as shard:
            latents.append(shard.get_tensor("latents"))
            labels.append(shard.get_tensor("labels"))
            captions.extend(json.loads(shard.metadata()["captions"]))
    return FlowClips(torch.cat(latents), captions, torch.cat(labels))
