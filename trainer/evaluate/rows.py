"""One row of the table: every measure of one set of clips, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..mini.watermark import watermark_score
from .distances import ClipKid, bootstrap, frame_consistency, frechet_distance, share_interval
from .flow import clip_flow
from .networks import Measuring
from .truth import as_frames

ATTRIBUTES = ("colour", "shape", "motion", "both", "camera")
"""What the mini world's judge can read: of one thing, of two things together, of the ground."""
LEVEL = 0.95
MEASURES = (
    *ATTRIBUTES,
    "clipsim",
    "style_kid",
    "flow",
    "flow_ratio",
    "flow_style_ratio",
    "fd_video",
    "fd_style",
    "fd_teacher",
    "frame_consistency",
    "watermark",
)
"""Columns, in order. None in a row where a measure does not apply."""


@dataclass(frozen=True)
class References:
    """What the rows are compared with; None leaves a measure out.

    ``style_frames`` (M, D) features of the style images; ``public_videos`` and ``style_videos``
    (M, E) features of true clips; ``teacher_videos`` (N, E) and ``teacher_flow`` (N,) pixels a
    frame, of the teacher's clips of the same prompts and seeds; ``style_flow`` (N,) of true clips
    in the style, of the same prompts. They count as fixed in every interval but the flow's.
    """

    style_frames: np.ndarray | None = None
    public_videos: np.ndarray | None = None
    style_videos: np.ndarray | None = None
    teacher_videos: np.ndarray | None = None
    teacher_flow: np.ndarray | None = None
    style_flow: np.ndarray | None = None

    def with_teacher(self, seen: Observation) -> References:
        """The same references and the teacher's clips, which later rows are compared with."""
        return replace(self, teacher_videos=seen.videos, teacher_flow=seen.flow)


@dataclass(frozen=True)
class Observation:
    """What the networks see in N clips, once: everything that measures are made of.

    ``frames`` (N, F, D) and ``videos`` (N, E) are features, ``flow`` (N,) is pixels per frame,
    ``hits`` has (N,) from 0 to 1, or NaN, by attribute (empty where no judge reads captions).
    ``watermark`` (N,) is the mini world's stamp; None for other models. ``clipsim`` (N,) is the
    similarity of clip and prompt; None without a CLIP.
    """

    frames: np.ndarray
    videos: np.ndarray
    flow: np.ndarray
    hits: dict[str, np.ndarray]
    watermark: np.ndarray | None = None
    clipsim: np.ndarray | None = None


def observe(clips: Tensor, captions: Sequence[str], network: Measuring) -> Observation:
    """Look at ``clips`` (N, 3, F, H, W) in [-1, 1] with the network, the judge and optical flow."""
    hits = {} if network.hits is None else network.hits(clips, captions)
    frames, videos = network.features(clips)
    shown = as_frames(clips)
    stamp = None if network.hits is None else watermark_score(shown)
    similar = None if network.similarity is None else network.similarity(clips, captions)
    return Observation(frames, videos, clip_flow(shown).magnitude, hits, stamp, similar)


def measure(seen: Observation, references: References, seed: int) -> dict[str, Any]:
    """All `MEASURES` of ``seen`` as ``name`` and ``name_ci`` [low, high]; None where left out.

    Accuracies have Wilson's interval; all others the bootstrap over clips, with frames of a clip
    kept together. KID leaves out pairs of frames from one clip.
    """
    row: dict[str, Any] = {**dict.fromkeys(MEASURES), **_accuracies(seen.hits)}
    count = len(seen.frames)
    consistency = frame_consistency(seen.frames)

    def add(name: str, fn: Callable[[np.ndarray], float]) -> None:
        row[name] = float(fn(np.arange(count)))
        row[f"{name}_ci"] = list(bootstrap(fn, count, seed, LEVEL))

    add("flow", lambda rows: float(seen.flow[rows].mean()))
    add("frame_consistency", lambda rows: float(consistency[rows].mean()))
    for name, values in (("watermark", seen.watermark), ("clipsim", seen.clipsim)):
        if values is not None:
            add(name, partial(_mean, values))
    if references.style_frames is not None:
        add("style_kid", ClipKid(seen.frames, references.style_frames))
    flows = {"flow_ratio": references.teacher_flow, "flow_style_ratio": references.style_flow}
    for name, flow in flows.items():
        if flow is not None and flow.mean() > 0:
            add(name, partial(_flow_ratio, seen.flow, flow))
    for name, other in _video_references(references).items():
        add(name, partial(_video_distance, seen.videos, other))
    return row


def _mean(values: np.ndarray, rows: np.ndarray) -> float:
    return float(values[rows].mean())


def _flow_ratio(flow: np.ndarray, other: np.ndarray, rows: np.ndarray) -> float:
    still = 1e-9  # pixels: a resample of motionless clips must not divide by zero
    return float(flow[rows].sum() / max(other[rows].sum(), still))


def _accuracies(hits_by_name: dict[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hits in hits_by_name.items():
        said = hits[~np.isnan(hits)]
        if len(said):
            found[name] = float(said.mean())
            found[f"{name}_ci"] = list(share_interval(float(said.sum()), len(said), LEVEL))
    return found


def _video_distance(videos: np.ndarray, other: np.ndarray, rows: np.ndarray) -> float:
    return frechet_distance(videos[rows], other)


def _video_references(references: References) -> dict[str, np.ndarray]:
    named = {
        "fd_video": references.public_videos,
        "fd_style": references.style_videos,
        "fd_teacher": references.teacher_videos,
    }
    return {name: videos for name, videos in named.items() if videos is not None}
