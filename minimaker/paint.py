"""Draws a scene in a style: ground, then each thing with its shadow, light, inside and outline.

Things are drawn in small boxes of planes (3, h, w), so that a clip takes a few milliseconds a
frame on one core.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .canvas import Finish, smooth_noise
from .fills import TILE, carried, toned, tones
from .grounds import draw_ground, plane
from .outlines import REACH_DOWN, Patch, outline
from .scenes import SIZE, Scene, Track
from .style import Style

SHADOW_TINT = np.array((0.95, 1.0, 0.92), np.float32)[:, None, None]
"""How strongly a shadow takes red, green and blue."""
FADED = 0.06
"""What is left of a long shadow at its end."""


@dataclass(frozen=True)
class Subject:
    """A thing of one clip as the painter keeps it: colour (3, 1, 1), centres on screen, the
    textures it carries, and how deep (F,) its floor lies on screen in px.
    """

    track: Track
    seen: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    wobble: np.ndarray
    floor: np.ndarray


def paint(scene: Scene, style: Style) -> np.ndarray:
    """The frames (F, 128, 128, 3), uint8, of ``scene`` in ``style``."""
    pad = int(np.ceil(np.abs(scene.pan).max() * SIZE)) + 4 * bool(scene.camera)
    ground = draw_ground(style.ground, scene.seed, pad)
    finish = Finish(style.canvas, scene.seed)
    rng = np.random.default_rng((scene.seed, 2))
    subjects = [_subject(scene, track, style, rng) for track in scene.tracks]
    side = style.canvas.pixels
    blocks = SIZE / side
    frames = np.empty((scene.frames, SIZE, SIZE, 3), np.uint8)
    for number in range(scene.frames):
        left, top = (pad + round(float(v) * blocks) * side for v in scene.pan[number])
        frame = ground[:, top : top + SIZE, left : left + SIZE].copy()
        for subject in subjects:
            _draw(frame, subject, number, style, finish.strokes)
        frames[number] = finish(frame)
    return frames


def _subject(scene: Scene, track: Track, style: Style, rng: np.random.Generator) -> Subject:
    seen = scene.on_screen(track)
    if style.canvas.pixels > 1:
        track, seen = _on_blocks(track, seen, style.canvas.pixels)
    down = REACH_DOWN[track.thing.shape]
    return Subject(
        track=track,
        seen=seen,
        colour=plane(style.palette[track.thing.colour]),
        texture=carried(style.fill, rng),
        wobble=smooth_noise(rng, 11, TILE, TILE),
        floor=((track.centres[:, 1] + down * track.radii).max() - scene.pan[:, 1]) * SIZE,
    )


def _on_blocks(track: Track, seen: np.ndarray, pixels: int) -> tuple[Track, np.ndarray]:
    """The thing upright, its place on screen and its size in whole blocks, as sprites are.

    Half a pixel further, so that the blocks' middles lie evenly around it.
    """
    blocks = SIZE / pixels
    radii = np.round(track.radii * blocks) / blocks
    return replace(track, radii=radii, angle=0.0), np.round(seen * blocks) / blocks + 0.5 / SIZE


def _draw(
    frame: np.ndarray, subject: Subject, number: int, style: Style, strokes: np.ndarray | None
) -> None:
    margin = style.margin
    patch = outline(subject.track, number, subject.seen, margin, style.rounding)
    if style.line.rough:
        patch = _roughened(patch, subject.wobble, style.line.rough)
    if style.shadow.kind == "floor":
        _floor_shadow(frame, subject, number, style)
    elif style.shadow.kind != "none":
        _cast_shadow(frame, patch, style)
    if style.glow:
        _glow(frame, patch, subject.colour, style.glow)
    body = patch.inner(margin - style.line.width - style.line.rough - 1)
    _fill(frame, body, subject, style, strokes)
    if style.line.width:
        _outline(frame, body, subject, style, strokes)


def _place(frame: np.ndarray, patch: Patch, right: int = 0, down: int = 0):
    """The frame's part under ``patch`` moved by (right, down), and the patch's part over it."""
    height, width = patch.distance.shape
    top, left = patch.top + down, patch.left + right
    rows = slice(max(-top, 0), max(min(height, SIZE - top), 0))
    columns = slice(max(-left, 0), max(min(width, SIZE - left), 0))
    view = frame[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    return view, (rows, columns)


def _roughened(patch: Patch, wobble: np.ndarray, amount: float) -> Patch:
    rows, columns = (
        np.clip(TILE // 2 + np.floor(v.ravel()).astype(int), 0, TILE - 1)
        for v in (patch.y, patch.x)
    )
    return replace(patch, distance=patch.distance + amount * wobble[rows][:, columns])


def _cast_shadow(frame: np.ndarray, patch: Patch, style: Style) -> None:
    shadow = style.shadow
    right, down = shadow.offset
    shade = patch.cover(soft=shadow.soft)
    if shadow.kind == "long":
        right = down = 0
        fade, step = FADED ** (1 / shadow.reach), 1
        while step < shadow.reach:
            moved = shade[:-step, :-step] * np.float32(fade**step)
            shade[step:, step:] = np.maximum(shade[step:, step:], moved)
            step *= 2
    else:
        shade = shade * shade * (3 - 2 * shade)
    view, part = _place(frame, patch, right, down)
    view *= 1 - shade[part] * (shadow.strength * SHADOW_TINT)


def _floor_shadow(frame: np.ndarray, subject: Subject, number: int, style: Style) -> None:
    """A flat spot on the floor; wider and fainter as the thing rises."""
    radius = float(subject.track.radii[number]) * SIZE
    cx, cy = (float(v) * SIZE for v in subject.seen[number])
    down = REACH_DOWN[subject.track.thing.shape]
    level = float(subject.floor[number])
    rise = max(level - cy - down * radius, 0.0) / SIZE
    wide, high = radius * (0.95 + 0.5 * rise), radius * 0.2 + 1.5
    floor = level - 0.3 * high
    top, left = max(int(floor - 3 * high), 0), max(int(cx - 2 * wide), 0)
    view = frame[:, top : int(floor + 3 * high) + 1, left : max(int(cx + 2 * wide) + 1, 0)]
    y = (np.arange(top, top + view.shape[1], dtype=np.float32) + 0.5 - floor)[:, None] / high
    x = (np.arange(left, left + view.shape[2], dtype=np.float32) + 0.5 - cx)[None] / wide
    spot = np.clip(1 - (x * x + y * y) / 2.4, 0, 1) ** 2
    view *= 1 - spot * (style.shadow.strength * max(1 - 1.4 * rise, 0.15) * SHADOW_TINT)


def _glow(frame: np.ndarray, patch: Patch, colour: np.ndarray, reach: float) -> None:
    """Light of the thing's colour on all around it."""
    view, part = _place(frame, patch)
    away = np.clip(patch.distance[part], 0, reach) * np.float32(1 / reach)
    halo = (1 - away) ** 2 * (0.42 * np.exp(-away * 4) + 0.5 * np.exp(-away * 14))
    view += halo * colour * (1 - view * np.float32(1 / 255))


def _fill(
    frame: np.ndarray, patch: Patch, subject: Subject, style: Style, strokes: np.ndarray | None
) -> None:
    view, part = _place(frame, patch)
    inside = toned(subject.colour, tones(style.fill, patch, subject.texture)[part])
    cover = patch.cover(soft=style.edge)[part] * np.float32(style.fill.opacity)
    if strokes is not None:
        cover = cover * _place(strokes[None], patch)[0][0]
    view += cover * (inside - view)


def _outline(
    frame: np.ndarray, patch: Patch, subject: Subject, style: Style, strokes: np.ndarray | None
) -> None:
    line = style.line
    view, part = _place(frame, patch)
    half = np.full((1, 1), line.width / 2, np.float32)
    if line.brush:  # a pen pressed harder below, as hands do
        lean = (patch.x + patch.y) * np.float32(0.7 / patch.radius)
        half = half * (1 + line.brush * np.clip(lean, -0.8, 0.8))
    away = np.abs(patch.distance + half * 0.5) - half
    cover = np.clip(0.5 - away / style.edge, 0, 1)[part]
    if strokes is not None:
        cover = cover * _place(strokes[None], patch)[0][0]
    ink = toned(subject.colour, np.full((1, 1), line.tone, np.float32))
    if line.colour is not None:
        ink = plane(line.colour)
    if style.core:
        burn = np.clip(-away / half, 0, 1)[part] * np.float32(style.core)
        ink = ink + burn * (255 - ink)
    view += cover * (ink - view)
