"""Labelled clips of the mini world for the two small networks that look at it (judge and frame
network).

Each network renders its own clips from its own seed; only this code is shared, never data or
weights. Everything is rendered once and kept as uint8, because rendering costs more than a training
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.mini.words import COLOURS, LOOKS, MOTIONS, SHAPES, SIZE

from .looks import STYLES, Look, public_video, random_style
from .world import FRAMES, REVERSED, Scene, random_scene, signed_distance

CELLS = 8


def random_look(scene: Scene, size: int = SIZE) -> np.ndarray:
    """A `Look` that gives every scene a random style of its own, by the scene's seed."""
    return random_style(np.random.default_rng((scene.seed, 5)))(scene, size)


ALL_LOOKS: dict[str, Look] = {"public": public_video, **STYLES, "other": random_look}


@dataclass(frozen=True)
class Clips:
    """``frames`` (N, F, H, W, 3) uint8; ``labels`` shape, colour, motion, look: (N,) int64.

    ``labels["mask"]`` (N, F, 8, 8) uint8 is 1 where the shape covers a quarter of the cell or more.
    """

    frames: Tensor
    labels: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.frames)

    def join(self, other: Clips) -> Clips:
        """Both sets, one after the other."""
        labels = {k: torch.cat((v, other.labels[k])) for k, v in self.labels.items()}
        return Clips(torch.cat((self.frames, other.frames)), labels)

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The clips of ``rows`` as (B, 3, F, H, W) float in [-1, 1]."""
        return self.frames[rows].permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def render_clips(
    seed: int, count: int, looks: Sequence[str | Look] = LOOKS, length: int = FRAMES
) -> Clips:
    """``count`` clips of ``length`` frames cut from full motions; the looks take turns.

    A look is a name of `LOOKS` or a callable, which is labelled as the look "other".
    """
    rng = np.random.default_rng(seed)
    frames = np.empty((count, length, SIZE, SIZE, 3), np.uint8)
    labels = np.empty((4, count), np.int64)
    masks = np.empty((count, length, CELLS, CELLS), np.uint8)
    for row in range(count):
        look = looks[row % len(looks)]
        scene = random_scene(rng)
        part = scene.window(int(rng.integers(FRAMES - length + 1)), length)
        frames[row] = (ALL_LOOKS[look] if isinstance(look, str) else look)(part, SIZE)
        assert scene.motion is not None
        what = (SHAPES.index(scene.shape), COLOURS.index(scene.colour))
        kind = LOOKS.index(look if isinstance(look, str) else "other")
        labels[:, row] = (*what, MOTIONS.index(scene.motion), kind)
        masks[row] = _mask(part)
    names = ("shape", "colour", "motion", "look")
    found = dict(zip(names, torch.from_numpy(labels), strict=True))
    return Clips(torch.from_numpy(frames), {**found, "mask": torch.from_numpy(masks)})


def _mask(scene: Scene) -> np.ndarray:
    side = SIZE // CELLS
    inside = (signed_distance(scene, SIZE) < 0).reshape(-1, CELLS, side, CELLS, side)
    return inside.mean(axis=(2, 4)) >= 0.25


def dense_loss(cells: Tensor, labels: dict[str, Tensor], frames: int) -> Tensor:
    """Loss of predictions for every cell: what is there (inside the mask), and whether anything is.

    ``cells`` (B * F, 1 + 5 + 6, 8, 8) are logits of presence, shape and colour. Told where to look,
    the networks learn shapes in a tenth of the steps that the clip's label alone would take.
    """
    mask = labels["mask"].flatten(0, 1).float()
    presence, shape, colour = cells.split((1, len(SHAPES), len(COLOURS)), dim=1)
    loss = F.binary_cross_entropy_with_logits(presence[:, 0], mask)
    for name, logits in (("shape", shape), ("colour", colour)):
        target = labels[name].repeat_interleave(frames)[:, None, None].expand_as(mask)
        each = F.cross_entropy(logits, target, reduction="none")
        loss = loss + (each * mask).sum() / mask.sum().clamp(min=1)
    return loss


@torch.no_grad()
def through_autoencoder(
    vae: AutoencoderTiny, clips: Clips, noise: float = 0.0, seed: int = 0, batch: int = 32
) -> Clips:
    """The clips after encoder and decoder, with up to ``noise`` deviations on the latents."""
    generator = torch.Generator().manual_seed(seed)
    flat = clips.frames.flatten(0, 1)
    out = torch.empty_like(flat)
    for start in range(0, len(flat), batch):
        pixels = flat[start : start + batch].permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = vae.encode(pixels).latents
        level = noise * torch.rand(len(latents), 1, 1, 1, generator=generator)
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents).sample.clamp(-1, 1)
        out[start : start + batch] = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return Clips(out.unflatten(0, clips.frames.shape[:2]), clips.labels)


def cached_decoded(
    file: Path,
    vae: AutoencoderTiny,
    seed: int,
    count: int,
    length: int,
    looks: Sequence[str | Look] = LOOKS,
) -> Clips:
    """Fresh clips through the autoencoder, kept in ``file`` for a resumed run."""
    if not file.exists():
        clips = render_clips(seed, count, looks, length)
        clips = through_autoencoder(vae, clips, noise=0.3, seed=seed)
        save_file({"frames": clips.frames, **clips.labels}, file)
    state = load_file(file)
    return Clips(state.pop("frames"), state)


_SIDES = {"moving left": "moving right", "moving right": "moving left"}
_MIRRORED = torch.tensor([MOTIONS.index(_SIDES.get(name, name)) for name in MOTIONS])
_BACKWARD = torch.tensor([MOTIONS.index(REVERSED[name]) for name in MOTIONS])


def mirrored(
    clips: Clips, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels (B, 3, F, H, W) and labels of ``rows``, mirrored and played backwards by chance.

    The motion's label follows: a mirrored "moving left" is "moving right".
    """
    pixels, labels = clips.pixels(rows), {k: v[rows] for k, v in clips.labels.items()}
    for axis, table in ((4, _MIRRORED), (2, _BACKWARD)):
        turn = torch.rand(len(rows), generator=generator) < 0.5
        pixels = torch.where(turn[:, None, None, None, None], pixels.flip(axis), pixels)
        mask = labels["mask"]
        labels["mask"] = torch.where(turn[:, None, None, None], mask.flip(axis - 1), mask)
        labels["motion"] = torch.where(turn, table[labels["motion"]], labels["motion"])
    return pixels, labels


def roughen(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random blur, contrast, brightness and noise, one draw per clip: (B, 3, F, H, W) to same."""

    def draw(low: float, high: float, chance: float = 1.0) -> Tensor:
        value = low + (high - low) * torch.rand(len(pixels), generator=generator)
        keep = torch.rand(len(pixels), generator=generator) < chance
        return (value * keep)[:, None, None, None, None]

    soft = F.avg_pool3d(pixels, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    pixels = pixels + draw(0, 1, 0.4) * (soft - pixels)
    pixels = pixels * (1 + draw(-0.12, 0.12)) + draw(-0.06, 0.06)
    noise = torch.randn(pixels.shape, generator=generator)
    return pixels + draw(0, 0.1, 0.5) * noise


def save_weights(module: nn.Module, file: Path) -> None:
    """Store the module's state in half precision (integers stay what they are)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = module.state_dict().items()
    small = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state}
    save_file(small, file, metadata={"format": "pt"})
