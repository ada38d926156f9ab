"""The two small networks that look at the drawn world of 128 px.

The reader is a frame network: the discriminator's features, and the cost of captions in training.
The judge only measures; no training uses it, and its seed, data and architecture differ. Both read
what is in each cell of 8 x 8 px, so that two things in one picture are read apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from torch import Tensor, nn

from .networks import FrameNet, Judge, load_framenet, load_frozen, load_judge
from .sentences import CAMERAS, COLOURS, MOTIONS, SHAPES, Thing, parse_sentence
from .tracks import PARTS, PROFILE, colour_tracks, colour_weights, ground_profile, on_ground

READER_FILE = "reader.safetensors"
JUDGE_FILE = "judge.safetensors"
SIZE, CELL = 128, 8
"""Pixels a side of a frame and of a cell."""
WIDTHS = (24, 48, 64, 80)
HIDDEN = 32
STILL = len(MOTIONS)
"""What the judge calls the motion of a thing that stands; `MOTIONS` come before it."""
HELD = len(CAMERAS)
"""What the judge calls a camera that does not pan."""
LEAST_AREA = 1.0
"""Cells, on average over the frames, that a colour must cover to be there."""
READ = ("colour", "shape", "motion", "camera", "both")
"""What the judge compares with a caption."""
_BATCH = 8
_NEED = "Run `python -m minimaker.small_wan` to train the small Wan's networks."


class _Stage(nn.Module):
    """Halves the map, then adds a residual: (N, C, H, W) to (N, D, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 4, 2, 1)
        self.norm = nn.GroupNorm(8, outputs)
        self.wide = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.close = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.down(x))
        return x + self.close(F.silu(self.wide(F.silu(x))))


class SceneReader(nn.Module):
    """Frames (N, 3, 128, 128) in [-1, 1] to maps of 32, 16, 8 and 4 pixels, and to captions' costs.

    Smooth, and no sample of a batch touches another, so that gradients flow to the pixels.
    """

    channels = WIDTHS
    side = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 2, 1)
        pairs = zip((12, *WIDTHS[:-1]), WIDTHS, strict=True)
        self.blocks = nn.ModuleList(_Stage(a, b) for a, b in pairs)
        self.joins = nn.ModuleList(nn.Conv2d(width, HIDDEN, 1) for width in WIDTHS[1:])
        self.cells = nn.Conv2d(HIDDEN, sum(PARTS), 1)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Maps (N, 24, 32, 32), (N, 48, 16, 16), (N, 64, 8, 8) and (N, 80, 4, 4)."""
        maps, x = [], F.silu(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def dense(self, pixels: Tensor) -> Tensor:
        """Logits (N, 1 + 5 + 6, 16, 16) of presence, shape and colour in every cell."""
        fine, *coarse = self.stages(pixels)[1:]
        joined = self.joins[0](fine)
        for join, maps in zip(self.joins[1:], coarse, strict=True):
            joined = joined + F.interpolate(join(maps), fine.shape[-2:], mode="bilinear")
        return self.cells(F.silu(joined))

    forward = dense

    def score(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        """Cost (N,) of ``captions`` for the frames ``pixels`` (N, 3, 128, 128).

        For each thing that a caption names: cross entropies of its shape, its colour and its
        presence, averaged, where something of its colour is. The mean over things; 0 for a caption
        that names none, or that the world cannot read. Raises ``ValueError`` when the counts
        differ.
        """
        if len(captions) != len(pixels):
            raise ValueError(
                f"{len(pixels)} frames came with {len(captions)} `captions`; give one per frame."
            )
        return caption_cost(self.dense(pixels), captions)


def caption_cost(cells: Tensor, captions: Sequence[str]) -> Tensor:
    """The costs (N,) that `SceneReader.score` gives, from logits ``cells`` (N, 12, h, w)."""
    named = [
        (row, SHAPES.index(thing.shape), COLOURS.index(thing.colour), 1 / len(things))
        for row, things in enumerate(_named(text)[0] for text in captions)
        for thing in things
    ]
    cost = cells.new_zeros(len(cells))
    if not named:
        return cost
    rows, shapes, colours, shares = (
        torch.tensor(column, device=cells.device) for column in zip(*named, strict=True)
    )
    presence, shape, colour = cells.flatten(2)[rows].split(PARTS, dim=1)
    own = colour.log_softmax(dim=1)[torch.arange(len(rows), device=cells.device), colours]
    weight = (presence[:, 0] + own).softmax(dim=1)[:, None]
    there = F.softplus(-(presence * weight).sum(dim=(1, 2)))
    form = F.cross_entropy((shape * weight).sum(2), shapes, reduction="none")
    tint = F.cross_entropy((colour * weight).sum(2), colours, reduction="none")
    return cost.index_add(0, rows, (there + form + tint) / 3 * shares)


def _named(text: str) -> tuple[tuple[Thing, ...], str | None]:
    """Things and camera that ``text`` names; none where the world cannot read it."""
    try:
        return parse_sentence(text)
    except ValueError:
        return (), None


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, (size - stride + 1) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


@dataclass(frozen=True)
class Seen:
    """What the judge sees in B clips, for each of the 6 colours.

    ``area`` (B, 6) is the mean number of cells, ``shape`` (B, 6) an index of `SHAPES`, ``motion``
    (B, 6) of `MOTIONS` or `STILL`; ``camera`` (B,) of `CAMERAS` or `HELD`.
    """

    area: np.ndarray
    shape: np.ndarray
    motion: np.ndarray
    camera: np.ndarray


class SceneJudge(nn.Module):
    """Clips (B, 3, F, 128, 128) in [-1, 1] to what they show: `read`, `watch`, `hits`.

    A dense head that knows no place; each colour's cells give a track over the frames, which is
    corrected by the ground's shift, and small networks name the motion and the camera's pan.
    """

    side = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, 6, 4), _conv(32, 32))
        self.body = nn.Sequential(_conv(32, 48, 3, 2), _Residual(48))
        self.context = nn.Sequential(_conv(48, 64, 3, 2), _Residual(64))
        self.join = _conv(48 + 64, HIDDEN, 1)
        self.cells = nn.Conv2d(HIDDEN, sum(PARTS), 1)
        self.track = nn.Sequential(
            nn.Conv1d(4, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU()
        )
        self.moves = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU())
        self.motion = nn.Linear(HIDDEN, len(MOTIONS) + 1)
        self.ground = nn.Sequential(nn.Linear(PROFILE, 48), nn.ReLU())
        self.camera = nn.Linear(48, len(CAMERAS) + 1)
        self.speed = nn.Linear(48, 2)

    def dense(self, pixels: Tensor) -> Tensor:
        """Logits (N, 1 + 5 + 6, 16, 16) of presence, shape and colour in the cells of frames."""
        return self.cells(self._hidden(pixels))

    def read(self, clips: Tensor) -> Tensor:
        """The logits of every cell of ``clips``: (B, F, 1 + 5 + 6, 16, 16)."""
        return self._read(clips)[1]

    def _hidden(self, pixels: Tensor) -> Tensor:
        fine = self.body(self.stem(pixels))
        coarse = F.interpolate(self.context(fine), fine.shape[-2:])
        return self.join(torch.cat((fine, coarse), dim=1))

    def _read(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(rearrange(clips, "b c f h w -> (b f) c h w"))
        cells = self.cells(hidden)
        return tuple(x.unflatten(0, (len(clips), -1)) for x in (hidden, cells))  # type: ignore[return-value]

    def motion_features(self, tracks: Tensor) -> Tensor:
        """(T, F, 4) of `on_ground` to (T, 32); ``motion`` makes logits of them."""
        maps = self.track(tracks.transpose(1, 2))
        return self.moves(torch.cat((maps.mean(2), maps.amax(2)), dim=1))

    def pan(self, profile: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 5) of the four pans and none, and the way (B, 2) in sides a frame, from the
        ground's ``profile`` (B, `PROFILE`).
        """
        hidden = self.ground(profile)
        return self.camera(hidden), self.speed(hidden) / 32

    def _tracks(self, clips: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, features of each colour's motion (B, 6, 32), and the camera's pan (B,)."""
        weights = colour_weights(cells)
        logits, velocity = self.pan(ground_profile(clips, cells))
        camera = logits.argmax(dim=1)
        velocity = velocity * (camera != HELD)[:, None]
        tracks = colour_tracks(weights)
        ways = velocity.repeat_interleave(tracks.shape[1], 0)
        moves = self.motion_features(on_ground(tracks.flatten(0, 1), ways))
        return weights, moves.unflatten(0, (len(clips), -1)), camera

    @torch.no_grad()
    def watch(self, clips: Tensor) -> Seen:
        """What ``clips`` (B, 3, F, 128, 128) show."""
        cells = self.read(clips)
        weights, moves, camera = self._tracks(clips, cells)
        form = cells.split(PARTS, dim=2)[1].log_softmax(dim=2)
        shape = torch.einsum("bfchw,bfshw->bcs", weights, form).argmax(dim=2)
        area, motion = weights.sum(dim=(3, 4)).mean(dim=1), self.motion(moves).argmax(dim=2)
        return Seen(*(x.cpu().numpy() for x in (area, shape, motion, camera)))

    @torch.no_grad()
    def hits(self, clips: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """For each of `READ` an array (B,): 1 where ``clips`` show what ``captions`` say, 0 where
        not, NaN where nothing is said.

        A caption with one thing is held against what covers most; with two, each colour must be
        there, its shape and motion are read where it is, and colour, shape and motion are the share
        of things that are right. "both" tells whether the colours and shapes of two things are. A
        thing without a motion stands where the camera pans; else nothing is said of it. A caption
        without a pan says that there is none. Raises ``ValueError`` when the counts differ.
        """
        if len(clips) != len(captions):
            raise ValueError(
                f"{len(clips)} clips came with {len(captions)} captions; give one per clip."
            )
        device = self.cells.weight.device
        rows: list[dict[str, float]] = []
        for start in range(0, len(clips), _BATCH):
            part = slice(start, start + _BATCH)
            seen = self.watch(clips[part].to(device))
            rows += [_compare(seen, i, text) for i, text in enumerate(captions[part])]
        return {name: np.array([row[name] for row in rows], np.float64) for name in READ}

    def video_features(self, clips: Tensor) -> Tensor:
        """(B, 3, F, 128, 128) to (B, 64): half tells what is shown, half how it moves."""
        hidden, cells = self._read(clips)
        weights, moves, _ = self._tracks(clips, cells)
        there = weights.sum(dim=2, keepdim=True)
        total = there.sum(dim=(1, 3, 4)).clamp(min=1e-3)
        content = (hidden * there).sum(dim=(1, 3, 4)) / total
        share = weights.sum(dim=(1, 3, 4)) / total
        return torch.cat((content, (moves * share[..., None]).sum(1)), dim=1)

    def frame_features(self, pixels: Tensor) -> Tensor:
        """Frames (N, 3, 128, 128) to (N, 64): mean and deviation of 32 mid-level maps: the look."""
        variance, mean = torch.var_mean(self.stem(pixels), dim=(2, 3))
        return torch.cat((mean, (variance + 1e-4).sqrt()), dim=1)


def _compare(seen: Seen, row: int, caption: str) -> dict[str, float]:
    """One clip's `READ` against its caption."""
    things, camera = _named(caption)
    result = dict.fromkeys(READ, np.nan)
    if not things:
        return result
    result["camera"] = float(seen.camera[row] == (CAMERAS.index(camera) if camera else HELD))
    right: dict[str, list[bool]] = {"colour": [], "shape": [], "motion": []}
    for thing in things:
        colour = COLOURS.index(thing.colour)
        place = colour if len(things) > 1 else int(seen.area[row].argmax())
        there = bool(seen.area[row, place] >= LEAST_AREA)
        right["colour"].append(there and place == colour)
        right["shape"].append(there and seen.shape[row, place] == SHAPES.index(thing.shape))
        if thing.motion or camera:
            wanted = MOTIONS.index(thing.motion) if thing.motion else STILL
            right["motion"].append(there and seen.motion[row, place] == wanted)
    result |= {name: float(np.mean(values)) for name, values in right.items() if values}
    if len(things) > 1:
        result["both"] = float(all(right["colour"] + right["shape"]))
    return result


def build_reader(seed: int = 204) -> SceneReader:
    """An untrained reader; the same ``seed`` gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SceneReader()


def build_scene_judge(seed: int = 103) -> SceneJudge:
    """An untrained judge; the same ``seed`` gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SceneJudge()


def load_reader(folder: Path) -> SceneReader:
    """The trained reader in ``folder``, frozen. Raises FileNotFoundError."""
    reader = build_reader()
    load_frozen(reader, folder / READER_FILE, _NEED)
    return reader


def load_scene_judge(folder: Path) -> SceneJudge:
    """The trained judge in ``folder``, frozen. Raises FileNotFoundError."""
    judge = build_scene_judge()
    load_frozen(judge, folder / JUDGE_FILE, _NEED)
    return judge


def open_reader(folder: Path) -> FrameNet | SceneReader:
    """The frame network in ``folder``, of the drawn world of 64 or of 128 px. Raises
    FileNotFoundError.
    """
    scenes = (folder / READER_FILE).is_file()
    return load_reader(folder) if scenes else load_framenet(folder)


def open_judge(folder: Path) -> Judge | SceneJudge:
    """The judge in ``folder``, of the drawn world of 64 or of 128 px. Raises FileNotFoundError."""
    file = folder / JUDGE_FILE
    if not file.is_file():
        return load_judge(folder)
    with safe_open(file, "pt") as weights:
        scenes = "ground.0.weight" in weights.keys()  # noqa: SIM118
    return load_scene_judge(folder) if scenes else load_judge(folder)
