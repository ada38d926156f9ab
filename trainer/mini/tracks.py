"""What a clip shows, from what its cells show: the way of each colour, and how the ground moves.

Plain arithmetic on the judge's cells and on pixels; nothing here is learnt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sentences import COLOURS, SHAPES

PARTS = (1, len(SHAPES), len(COLOURS))
"""Logits of a cell: presence, shapes, colours."""
CERTAIN = 0.2
"""Weight of a cell below which it belongs to nothing."""
LEAST = 0.5
"""Cells in a frame from which a track knows where its thing is."""
GAP = 2
"""Frames between the two that are compared to see how the ground moves."""
SHIFTS = tuple(range(-4, 5))
"""Pixels, at half size, by which the ground may have moved in `GAP` frames, across or down."""
PROFILE = 4 * len(SHIFTS) + 2


def colour_weights(cells: Tensor) -> Tensor:
    """Weights (B, F, 6, h, w) in 0..1: how much each cell of ``cells`` (B, F, 12, h, w) belongs to
    a thing of each colour.
    """
    presence, _, colour = cells.split(PARTS, dim=2)
    weight = presence.sigmoid() * colour.softmax(dim=2)
    return F.relu(weight - CERTAIN) / (1 - CERTAIN)


def colour_tracks(weights: Tensor) -> Tensor:
    """Tracks (B, 6, F, 4) of ``weights`` (B, F, 6, h, w): the middle's x and y with the frame's
    side as unit, the logarithm of the area in cells, and 1 where anything is there, else 0.
    """
    height, width = weights.shape[-2:]
    area = weights.sum(dim=(3, 4))
    there = area > LEAST
    x = (torch.arange(width, device=weights.device) + 0.5) / width
    y = (torch.arange(height, device=weights.device) + 0.5) / height
    safe = area.clamp(min=1e-3)
    places = (weights.sum(3) @ x / safe, weights.sum(4) @ y / safe)
    track = torch.stack((*places, safe.log(), there.to(weights.dtype)), dim=-1)
    return torch.where(there[..., None], track, torch.zeros_like(track)).transpose(1, 2)


def on_ground(tracks: Tensor, velocity: Tensor) -> Tensor:
    """``tracks`` (T, F, 4) as the motion head takes them: the camera's way, ``velocity`` (T, 2) in
    sides a frame, is added, and the mean over the frames that show the thing is taken off.
    """
    steps = torch.arange(tracks.shape[1], device=tracks.device, dtype=tracks.dtype)
    place = tracks[..., :2] + velocity[:, None] * steps[:, None]
    values, there = torch.cat((place, tracks[..., 2:3]), dim=-1), tracks[..., 3:]
    mean = (values * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    scale = torch.tensor((5.0, 5.0, 1.5), device=tracks.device, dtype=tracks.dtype)
    return torch.cat(((values - mean) * there * scale, there), dim=-1)


def ground_profile(clips: Tensor, cells: Tensor) -> Tensor:
    """How well the ground of frames `GAP` apart agrees when one is shifted: (B, `PROFILE`).

    ``clips`` (B, 3, F, H, W), ``cells`` (B, F, 12, h, w), whose things are left out. For every
    shift across, then down: the correlation of what is not the same in all frames, less that
    without a shift, and the logarithm of the difference of the frames themselves, in relation to
    the smallest. At last the correlation without a shift, and the logarithm of how much changes at
    all. Zeros for clips that are shorter than that.
    """
    if clips.shape[2] <= GAP:
        return clips.new_zeros(len(clips), PROFILE)
    grey = F.avg_pool2d(clips.mean(dim=1), 2)
    things = F.max_pool2d(cells[:, :, 0].sigmoid(), 3, 1, 1)
    free = 1 - F.interpolate(things, grey.shape[-2:])
    free = (free > 0.7).to(grey.dtype)
    mean = (grey * free).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
    moving = (grey - mean) * free
    pairs = [_shifted(grey, moving, free, shift, axis) for axis in (3, 2) for shift in SHIFTS]
    alike, differ = torch.stack(pairs, dim=2).unbind(1)
    differ = (differ + 1e-5).log()
    differ = differ - differ.amin(dim=1, keepdim=True)
    change = moving.square().sum(dim=(1, 2, 3)) / free.sum(dim=(1, 2, 3)).clamp(min=1)
    unmoved = alike[:, SHIFTS.index(0), None]
    parts = (8 * (alike - unmoved), differ / 4, unmoved, (change + 1e-5).log()[:, None] / 4)
    return torch.cat(parts, dim=1)


def turned_profile(profile: Tensor, turn: Tensor, axis: int) -> Tensor:
    """``profile`` (B, `PROFILE`) of the clips mirrored across (``axis`` 0) or down (1) where
    ``turn`` (B,) is set.
    """
    profile, length = profile.clone(), len(SHIFTS)
    for first in (axis * length, (2 + axis) * length):
        part = profile[:, first : first + length]
        profile[:, first : first + length] = torch.where(turn[:, None], part.flip(1), part)
    return profile


def _shifted(grey: Tensor, moving: Tensor, free: Tensor, shift: int, axis: int) -> Tensor:
    """Correlation and mean squared difference, (B, 2), of the frames shifted along ``axis``."""
    side = grey.shape[axis]
    first, later = (
        slice(max(-shift, 0), side - max(shift, 0)),
        slice(max(shift, 0), side + min(shift, 0)),
    )

    def ends(maps: Tensor) -> tuple[Tensor, Tensor]:
        length = first.stop - first.start
        return (
            maps[:, :-GAP].narrow(axis, first.start, length),
            maps[:, GAP:].narrow(axis, later.start, length),
        )

    (a, b), (m, n), (before, after) = ends(moving), ends(free), ends(grey)
    both = m * n
    count = both.sum(dim=(1, 2, 3)).clamp(min=1)
    power = ((a * a * both).sum(dim=(1, 2, 3)) * (b * b * both).sum(dim=(1, 2, 3))).sqrt()
    alike = (a * b * both).sum(dim=(1, 2, 3)) / (power + 1e-3)
    differ = ((before - after).square() * both).sum(dim=(1, 2, 3)) / count
    return torch.stack((alike, differ), dim=1)
