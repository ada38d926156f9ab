"""Ways of things over a clip's frames, for the judge's motions and pans: as it sees them in drawn
clips, and simulated from the geometry alone, which costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from trainer.mini.reading import HELD, STILL, SceneJudge
from trainer.mini.sentences import CAMERAS, COLOURS, MOTIONS, parse_sentence
from trainer.mini.tracks import colour_tracks, colour_weights, ground_profile, turned_profile
from trainer.models.tiny_vae import TinyVae

from .gallery import Look
from .scene_clips import LATENT_NOISE, SIDE, render_scenes, through_vae, training_scene
from .scenes import SIZE, Scene, Track

DOUBT = 0.15 / SIZE
"""Deviation of the camera's way, in sides a frame, that the motions are learnt with."""
CHUNK = 12
"""Clips that are in memory at once."""


@dataclass(frozen=True)
class TrackSet:
    """``tracks`` (T, F, 4) as `trainer.mini.tracks.colour_tracks` gives them, ``way`` (T, 2) of the
    camera in sides a frame and ``motion`` (T,); for N clips ``profile`` (N, P) of the ground,
    ``camera`` (N,) and ``pan`` (N, 2). Simulated tracks have no clips.
    """

    tracks: Tensor
    way: Tensor
    motion: Tensor
    profile: Tensor
    camera: Tensor
    pan: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Tracks, the camera's way with some doubt, and motions of ``size`` random tracks."""
        rows = torch.randint(len(self.tracks), (size,), generator=generator)
        doubt = DOUBT * torch.randn((size, 2), generator=generator)
        moved = (self.way[rows] != 0).any(dim=1, keepdim=True)
        return self.tracks[rows], self.way[rows] + doubt * moved, self.motion[rows]

    def pans(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Profiles, cameras and the camera's ways of ``size`` random clips, mirrored by chance."""
        rows = torch.randint(len(self.profile), (size,), generator=generator)
        profile, camera, pan = self.profile[rows], self.camera[rows], self.pan[rows]
        for axis in (0, 1):
            turn = torch.rand(size, generator=generator) < 0.5
            profile = turned_profile(profile, turn, axis)
            camera = torch.where(turn & (camera // 2 == axis), camera ^ 1, camera)
            pan = torch.where(turn[:, None] & (torch.arange(2) == axis), -pan, pan)
        return profile, camera, pan


def cached_tracks(
    file: Path,
    judge: SceneJudge,
    seed: int,
    count: int,
    looks: Sequence[str | Look],
    vae: TinyVae | None = None,
) -> TrackSet:
    """What ``judge`` sees in ``count`` fresh clips, a third of them through the autoencoder where
    there is one; stored in ``file`` for a resumed run.
    """
    if not file.exists():
        found = _watched(judge, seed, count, looks, vae)
        temporary = file.with_suffix(".tmp")
        save_file({name: value.contiguous() for name, value in vars(found).items()}, temporary)
        temporary.replace(file)
    return TrackSet(**load_file(file))


@torch.no_grad()
def _watched(
    judge: SceneJudge, seed: int, count: int, looks: Sequence[str | Look], vae: TinyVae | None
) -> TrackSet:
    parts: list[tuple[Tensor, ...]] = []
    for start in tqdm(range(0, count, CHUNK), desc="judge_tracks", mininterval=10):
        turned = [*looks[start % len(looks) :], *looks[: start % len(looks)]]
        clips = render_scenes(seed + 1000 * start, min(CHUNK, count - start), turned)
        if vae is not None and start // CHUNK % 3 == 0:
            clips = through_vae(vae, clips, LATENT_NOISE, seed + start)
        pixels = clips.pixels()
        cells = judge.read(pixels)
        every = colour_tracks(colour_weights(cells))
        named = [parse_sentence(text) for text in clips.captions]
        rows = [(row, t) for row, (things, _) in enumerate(named) for t in things]
        places = [(row, COLOURS.index(t.colour)) for row, t in rows]
        parts.append(
            (
                torch.stack([every[row, colour] for row, colour in places]),
                clips.pan[[row for row, _ in rows]],
                torch.tensor([_motion_index(t.motion) for _, t in rows]),
                ground_profile(pixels, cells),
                torch.tensor([HELD if c is None else CAMERAS.index(c) for _, c in named]),
                clips.pan,
            )
        )
    return TrackSet(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _motion_index(motion: str | None) -> int:
    return STILL if motion is None else MOTIONS.index(motion)


def simulated_tracks(seed: int, count: int) -> TrackSet:
    """At least ``count`` tracks of random scenes, each thing a disc that is seen in cells, with
    noise and with frames in which it is not seen.
    """
    rng = np.random.default_rng(seed)
    tracks: list[np.ndarray] = []
    ways, motions = [], []
    while len(tracks) < count:
        scene = training_scene(rng)
        for track in scene.tracks:
            tracks.append(_noisy(rng, _disc(scene, track)))
            ways.append(scene.pan[1] - scene.pan[0])
            motions.append(_motion_index(track.thing.motion))
    seen, way = (torch.from_numpy(np.stack(v).astype(np.float32)) for v in (tracks, ways))
    none = torch.zeros(0)
    return TrackSet(seen, way, torch.tensor(motions), none, none, none)


def _disc(scene: Scene, track: Track) -> np.ndarray:
    """(F, 4) of a disc as `trainer.mini.tracks.colour_tracks` has it, cut by the frame."""
    place = (np.arange(SIDE) + 0.5) / SIDE
    centres = scene.on_screen(track)
    x = place[None, None, :] - centres[:, 0, None, None]
    y = place[None, :, None] - centres[:, 1, None, None]
    cover = np.clip(0.5 + SIDE * (track.radii[:, None, None] - np.hypot(x, y)), 0, 1)
    area = np.maximum(cover.sum(axis=(1, 2)), 1e-3)
    middle = (cover.sum(axis=1) @ place / area, cover.sum(axis=2) @ place / area)
    return np.stack((*middle, np.log(area), np.ones_like(area)), axis=1)


def _noisy(rng: np.random.Generator, track: np.ndarray) -> np.ndarray:
    """Noise on places and areas, and now and then frames without the thing."""
    noise = rng.normal(0, 1, track.shape) * (0.006, 0.006, 0.06, 0) * rng.uniform(0.2, 2.5)
    track = track + noise
    if rng.random() < 0.3:
        lost = rng.random(len(track)) < rng.uniform(0.05, 0.3)
        track[lost] = 0
    return track
