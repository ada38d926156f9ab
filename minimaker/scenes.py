"""Geometry of the clips of the mini world: where each thing is, how large, and how the camera pans.

How a scene looks is decided by a style (``paint.py``) or by public video (``footage.py``), so the
same scene can be drawn in any look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.mini.sentences import (
    CAMERAS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Thing,
    parse_sentence,
    sentence,
)

SIZE = 128
"""Side of a frame in pixels."""
FRAMES = 17
FPS = 8
PAIRS, PANS, STANDING = 0.3, 0.15, 0.3
"""How often a clip has two things, how often the camera pans, how often a thing then stands."""
GAP = 0.03
"""Space that two things keep between each other, as a part of the side."""
TRIES = 60
REACH = 1.12
"""How far the corners of a shape of radius 1 reach."""

Way = Callable[[np.random.Generator, np.ndarray, float, float], tuple[np.ndarray, np.ndarray]]
_WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Track:
    """One thing on its way: ``centres`` (F, 2) as (x, y) and ``radii`` (F,), with the frame's side
    as unit and y downwards, and a fixed ``angle`` in radians.

    Centres are places on the ground; see `Scene.on_screen`.
    """

    thing: Thing
    centres: np.ndarray
    radii: np.ndarray
    angle: float


@dataclass(frozen=True)
class Scene:
    """Geometry of one clip: one or two tracks, the lower one first, and the camera's pan.

    ``pan`` (F, 2) is how far the camera has turned, in whole pixels of a 128 px frame; zero where
    ``camera`` is None.
    """

    tracks: tuple[Track, ...]
    camera: str | None
    pan: np.ndarray
    seed: int

    @property
    def frames(self) -> int:
        return len(self.pan)

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(track.thing for track in self.tracks)

    @property
    def caption(self) -> str:
        return sentence(self.things, self.camera)

    def on_screen(self, track: Track) -> np.ndarray:
        """Centres (F, 2) of ``track`` as the camera sees them."""
        return track.centres - self.pan

    def window(self, start: int, length: int = FRAMES) -> Scene:
        """The same scene cut to ``length`` frames from ``start``."""
        part = slice(start, start + length)
        tracks = (replace(t, centres=t.centres[part], radii=t.radii[part]) for t in self.tracks)
        return replace(self, tracks=tuple(tracks), pan=self.pan[part])


def random_scene(
    rng: np.random.Generator,
    frames: int = FRAMES,
    *,
    pair: bool | None = None,
    pan: bool | str | None = None,
    shape: str | None = None,
    colour: str | None = None,
    motion: str | None = None,
) -> Scene:
    """A moving scene; what is not given is drawn at random.

    ``shape``, ``colour`` and ``motion`` are the first thing's; ``pan`` may name the way, as in
    "pans left".
    """
    two, turns = rng.random() < PAIRS, rng.random() < PANS
    way = _pick(rng, CAMERAS, pan if isinstance(pan, str) else None)
    camera = way if pan or (pan is None and turns) else None
    first = Thing(
        _pick(rng, SHAPES, shape), _pick(rng, COLOURS, colour), _pick(rng, MOTIONS, motion)
    )
    things = [first]
    if two if pair is None else pair:
        things.append(_another(rng, first, _pick(rng, MOTIONS)))
    if camera and motion is None and rng.random() < STANDING:
        things[0] = first.still
    return _stage(rng, things, camera, frames)


def random_still(
    rng: np.random.Generator,
    *,
    pair: bool | None = None,
    shape: str | None = None,
    colour: str | None = None,
) -> Scene:
    """A scene of one frame, as the style folders hold them: its caption names no motion."""
    two = rng.random() < PAIRS
    first = Thing(_pick(rng, SHAPES, shape), _pick(rng, COLOURS, colour))
    things = [first]
    if two if pair is None else pair:
        things.append(_another(rng, first, None))
    return _stage(rng, things, None, 1)


def caption_scene(text: str, rng: np.random.Generator, frames: int = FRAMES) -> Scene:
    """A scene that shows what the sentence ``text`` says.

    Raises ``ValueError`` for a text that names no clip of the mini world.
    """
    things, camera = parse_sentence(text)
    return _stage(rng, things, camera, frames)


def separation(first: Track, second: Track) -> float:
    """Smallest space between two things in any frame, as a part of the side; negative where they
    overlap.
    """
    apart = np.hypot(*(first.centres - second.centres).T)
    return float((apart - REACH * (first.radii + second.radii)).min())


def _pick(rng: np.random.Generator, words: Sequence[str], given: str | None = None) -> str:
    drawn = words[int(rng.integers(len(words)))]
    return drawn if given is None else given


def _another(rng: np.random.Generator, first: Thing, motion: str | None) -> Thing:
    """A thing of another shape and colour."""
    shapes = [shape for shape in SHAPES if shape != first.shape]
    colours = [colour for colour in COLOURS if colour != first.colour]
    return Thing(_pick(rng, shapes), _pick(rng, colours), motion)


def _stage(
    rng: np.random.Generator, things: Sequence[Thing], camera: str | None, frames: int
) -> Scene:
    """Find places for ``things`` so that they are on screen and do not hide each other."""
    pan = _turn(rng, things, camera, frames)
    size = 1.0 if len(things) == 1 else 0.7
    best: tuple[Track, ...] = ()
    best_score = -np.inf
    for _ in range(TRIES):
        tracks = tuple(_track(rng, thing, frames, size, pan) for thing in things)
        score = min(_inside(track, pan) for track in tracks)
        if len(tracks) == 2:
            score = min(score, separation(*tracks) - GAP)
        if score > best_score:
            best, best_score = tracks, score
        if score >= 0:
            break
    return Scene(best, camera, pan, int(rng.integers(2**31)))


def _turn(
    rng: np.random.Generator, things: Sequence[Thing], camera: str | None, frames: int
) -> np.ndarray:
    """Pan (F, 2): 2 or 3 pixels a frame, the slow one where a thing moves along with it."""
    pixels = int(rng.integers(2, 4))
    if camera is None:
        return np.zeros((frames, 2))
    way = camera.removeprefix("pans ")
    if any(thing.motion == f"moving {way}" for thing in things):
        pixels = 2
    steps = np.arange(frames) - (frames - 1) // 2
    return steps[:, None] * np.array(_WAYS[way]) * (pixels / SIZE)


def _track(
    rng: np.random.Generator, thing: Thing, frames: int, size: float, pan: np.ndarray
) -> Track:
    time = np.arange(frames, dtype=np.float64)
    way = _WAYS.get((thing.motion or "").removeprefix("moving "), (0, 0))
    along = float((pan[-1] - pan[0]) @ np.array(way))  # how far the camera goes with the thing
    if thing.motion is None:
        centres, radii = _stand(rng, time, size, along)
    else:
        centres, radii = _PATHS[thing.motion](rng, time, size, along)
    return Track(thing, centres, radii, float(rng.uniform(-0.22, 0.22)))


def _inside(track: Track, pan: np.ndarray) -> float:
    """How far the thing's middle stays from the frame's edge, less what it should; negative where
    it comes too near.
    """
    seen = track.centres - pan
    room = np.minimum(seen, 1 - seen).min(axis=1) - 0.55 * track.radii
    return float(min(room.min(), 0.0))


def _stand(rng: np.random.Generator, t: np.ndarray, size: float, _: float):
    spread = 0.16 if size == 1 else 0.3
    radius = size * (rng.uniform(0.2, 0.3) if len(t) == 1 else rng.uniform(0.18, 0.24))
    return np.repeat(rng.uniform(0.5 - spread, 0.5 + spread, (1, 2)), len(t), 0), _same(t, radius)


def _translate(way: tuple[int, int]) -> Way:
    def path(rng: np.random.Generator, t: np.ndarray, size: float, along: float):
        last = max(len(t) - 1, 1)
        travel = min(rng.uniform(0.033, 0.046) * last, 0.74)
        travel = np.clip(travel, 0.32 + max(along, 0), 0.76 + min(along, 0))
        seen = travel - along
        start = 0.5 - travel / 2 + rng.uniform(-0.5, 0.5) * max(0.76 - max(travel, seen), 0)
        steps = start + travel * t / last
        if min(way) < 0:
            steps = 1 - steps
        across = rng.uniform(0.32, 0.68) if size == 1 else rng.uniform(0.17, 0.83)
        fixed = _same(t, across)
        pair = (steps, fixed) if way[0] else (fixed, steps)
        return np.stack(pair, axis=1), _same(t, size * rng.uniform(0.16, 0.22))

    return path


def _resize(sign: int) -> Way:
    def path(rng: np.random.Generator, t: np.ndarray, size: float, _: float):
        small = rng.uniform(0.1, 0.125) * (1 if size == 1 else 0.75)
        large = small * rng.uniform(2.6, 3.1)
        radii = small + (large - small) * t / max(len(t) - 1, 1)
        spread = 0.12 if size == 1 else 0.27
        centre = rng.uniform(0.5 - spread, 0.5 + spread, size=2)
        return np.repeat(centre[None], len(t), 0), radii if sign > 0 else radii[::-1].copy()

    return path


def _circle(rng: np.random.Generator, t: np.ndarray, size: float, _: float):
    turn = rng.choice((-1, 1)) * 2 * np.pi / rng.uniform(9.0, 13.0)
    angle = rng.uniform(0, 2 * np.pi) + turn * t
    reach = rng.uniform(0.17, 0.23) * (1 if size == 1 else 0.8)
    spread = 0.07 if size == 1 else 0.22
    middle = rng.uniform(0.5 - spread, 0.5 + spread, size=2)
    centres = middle + reach * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return centres, _same(t, size * rng.uniform(0.15, 0.2))


def _bounce(rng: np.random.Generator, t: np.ndarray, size: float, _: float):
    phase, period = rng.uniform(0, 1), rng.uniform(6.0, 7.6)
    u = (t / period + phase) % 1.0
    radius = size * rng.uniform(0.16, 0.21)
    height = rng.uniform(0.38, 0.46) * 4 * u * (1 - u)
    floor = rng.uniform(0.9, 0.95) - radius
    x = rng.uniform(0.3, 0.7) if size == 1 else rng.uniform(0.18, 0.82)
    return np.stack((_same(t, x), floor - height), axis=1), _same(t, radius)


def _same(t: np.ndarray, value: float) -> np.ndarray:
    return np.full_like(t, value)


_PATHS: dict[str, Way] = {
    **{f"moving {name}": _translate(way) for name, way in _WAYS.items()},
    "growing": _resize(1),
    "shrinking": _resize(-1),
    "circling": _circle,
    "bouncing": _bounce,
}
