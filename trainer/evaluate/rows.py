"""One row of the table: every measure of one set of clips, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .accuracy import ATTRIBUTES, caption_hits
from .distances import bootstrap, frame_consistency, frechet_distance, kid, share_interval
from .flow import clip_flow
from .networks import Measuring
from .truth import as_frames

LEVEL = 0.95
MEASURES = (
    *ATTRIBUTES,
    "style_kid",
    "flow",
    "flow_ratio",
    "fd_video",
    "fd_style",
    "fd_teacher",
    "frame_consistency",
)
"""Columns, in order. None in a row where a measure does not apply."""


@dataclass(frozen=True)
class References:
    """What the rows are compared with; None leaves a measure out.

    ``style_frames`` (M, D) features of the style images; ``public_videos`` and ``style_videos``
    (M, E) features of true clips; ``teacher_videos`` (N, E) and ``teacher_flow`` (N,) pixels a
    frame, of the teacher's clips of the same prompts and seeds. They count as fixed in every
    interval but the flow's.
    """

    style_frames: np.ndarray | None = None
    public_videos: np.ndarray | None = None
    style_videos: np.ndarray | None = None
    teacher_videos: np.ndarray | None = None
    teacher_flow: np.ndarray | None = None


def measure_clips(
    clips: Tensor, captions: Sequence[str], network: Measuring, references: References, seed: int
) -> dict[str, Any]:
    """`MEASURES` of ``clips`` (N, 3, F, H, W) in [-1, 1], as ``name`` and ``name_ci`` [low, high].

    Accuracies have Wilson's interval; all others the bootstrap over clips, with frames of a clip
    kept together. KID leaves out pairs of frames from one clip.
    """
    row: dict[str, Any] = dict.fromkeys(MEASURES)
    row.update(_accuracies(clips, captions, network))
    count, frames = len(clips), clips.shape[2]
    features, videos = network.frames(clips), network.videos(clips)
    flow = clip_flow(as_frames(clips)).magnitude
    consistency = frame_consistency(features)

    def add(name: str, fn: Callable[[np.ndarray], float]) -> None:
        row[name] = fn(np.arange(count))
        row[f"{name}_ci"] = list(bootstrap(fn, count, seed, LEVEL))

    add("flow", lambda rows: float(flow[rows].mean()))
    add("frame_consistency", lambda rows: float(consistency[rows].mean()))
    style, teacher = references.style_frames, references.teacher_flow
    if style is not None:
        add(
            "style_kid",
            lambda rows: kid(
                np.concatenate(features[rows]), style, groups_a=np.repeat(rows, frames)
            ),
        )
    if teacher is not None and teacher.mean() > 0:
        add("flow_ratio", lambda rows: float(flow[rows].mean() / max(teacher[rows].mean(), 1e-9)))
    for name, other in _video_references(references).items():
        add(name, lambda rows, other=other: frechet_distance(videos[rows], other))
    return row


def _accuracies(clips: Tensor, captions: Sequence[str], network: Measuring) -> dict[str, Any]:
    if network.judge is None:
        return {}
    found: dict[str, Any] = {}
    for name, hits in caption_hits(network.judge, clips, captions).items():
        said = hits[~np.isnan(hits)]
        if len(said):
            found[name] = float(said.mean())
            found[f"{name}_ci"] = list(share_interval(int(said.sum()), len(said), LEVEL))
    return found


def _video_references(references: References) -> dict[str, np.ndarray]:
    named = {
        "fd_video": references.public_videos,
        "fd_style": references.style_videos,
        "fd_teacher": references.teacher_videos,
    }
    return {name: videos for name, videos in named.items() if videos is not None}
