"""Clips of poor video as the small Wan's teacher reads them: encoded once and kept in shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
from .scenes import FRAMES, SIZE, Scene, random_scene

SHARD = 200
TOKEN = 16
"""Pixels a side of what one token of the transformer stands for."""
EMPTY_CAPTIONS = 0.1


@dataclass(frozen=True)
class FlowClips:
    """``latents`` (N, 16, 5, 16, 16) fp16, their captions, and ``labels`` (N, 5, 8, 8) uint8: what
    is at each token, 0 for the ground, else 1 + 6 shape + colour.
    """

    latents: Tensor
    captions: list[str]
    labels: Tensor

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, list[str], Tensor]:
        """``size`` clips in fp32, captions of which some are empty, and labels (B, 5, 8, 8)."""
        rows = rng.integers(len(self.latents), size=size)
        empty = rng.random(size) < EMPTY_CAPTIONS
        said = ["" if e else self.captions[row] for row, e in zip(rows, empty, strict=True)]
        return self.latents[rows].float(), said, self.labels[rows].long()


def encode_clips(vae: TinyVae, work: Path, shards: int, seed: int = 1000) -> list[Path]:
    """Render and encode what is missing of ``shards`` shards; their files."""
    files = [work / f"flow-clips-{index:03d}.safetensors" for index in range(shards)]
    for index, file in enumerate(files):
        if not file.exists():
            _encode_shard(vae, file, seed + index)
    return files


@torch.no_grad()
def _encode_shard(vae: TinyVae, file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    latents, captions, labels = [], [], []
    for _ in tqdm(range(SHARD), desc=file.stem, mininterval=10):
        scene = random_scene(rng, FRAMES)
        latents.append(vae.encode(to_clip(public_video(scene))[None])[0].half())
        captions.append(scene.caption)
        labels.append(token_labels(scene))
    temporary = file.with_suffix(".tmp")
    tensors = {"latents": torch.stack(latents), "labels": torch.from_numpy(np.stack(labels))}
    save_file(tensors, temporary, metadata={"captions": json.dumps(captions)})
    temporary.replace(file)


def token_labels(scene: Scene) -> np.ndarray:
    """(5, 8, 8) uint8 of what is in the middle of each token, at the middle of its frames: 0 for
    the ground, else 1 + 6 shape + colour. A thing counts as a disc a little smaller than it is.
    """
    frames = [0, *range(3, scene.frames, 4)]
    side = SIZE // TOKEN
    place = (np.arange(side) + 0.5) / side
    labels = np.zeros((len(frames), side, side), np.uint8)
    for track in scene.tracks:
        centres, thing = scene.on_screen(track)[frames], track.thing
        x = place[None, None, :] - centres[:, 0, None, None]
        y = place[None, :, None] - centres[:, 1, None, None]
        inside = np.hypot(x, y) < 0.85 * track.radii[frames, None, None]
        kind = len(COLOURS) * SHAPES.index(thing.shape) + COLOURS.index(thing.colour)
        labels[inside] = 1 + kind
    return labels


def load_clips(files: list[Path]) -> FlowClips:
    """All shards in memory, 41 KiB a clip."""
    latents, captions, labels = [], [], []
    for file in files:
        with safe_open(file, "pt") as shard:
            latents.append(shard.get_tensor("latents"))
            labels.append(shard.get_tensor("labels"))
            captions.extend(json.loads(shard.metadata()["captions"]))
    return FlowClips(torch.cat(latents), captions, torch.cat(labels))
