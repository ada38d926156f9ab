"""The motion clips: scanning a folder of videos, cutting clips out of them, drawing batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .captions import DEFAULT_TEMPLATE, CaptionRules
from .clips import Probe, nearest_frames, probe
from .framing import Box, cut_strength, find_bars, fit
from .records import DataError, MediaFolder, MediaRecord, check_usable
from .scan import MediaKind, Refused, scan_folder

__all__ = [
    "DataError",
    "VideoFolder",
    "VideoRecord",
    "VideoSet",
    "load_clip",
    "scan_videos",
]

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".gif", ".webp"}
)
UNSUPPORTED = dict.fromkeys((".apng", ".avif", ".y4m", ".h264"), "not supported; convert it to MP4")
BAR_SAMPLES = 7
CUT_THRESHOLD = 0.12
CUT_TRIES = 4
_HINT = "Put MP4, MOV, MKV, WebM or animated GIF files that are long enough into the folder."


@dataclass(frozen=True, kw_only=True)
class VideoRecord(MediaRecord):
    """One file of a video folder; more in `MediaRecord`.

    `seconds` is the time from the first to the last frame, `frames` their number, `fps` their mean
    rate. `box` is the picture inside black bars, as (left, top, right, bottom) upright pixels, or
    None. `pixel_aspect` is the width of a pixel over its height.
    """

    seconds: float = 0.0
    frames: int = 0
    fps: float = 0.0
    box: Box | None = None
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class VideoFolder(MediaFolder[VideoRecord]):
    """A scanned video folder."""

    def _row(self, record: VideoRecord) -> tuple[str, str, str, str, str]:
        status, size, repeats, name, text = super()._row(record)
        if record.frames:
            size += f" {record.seconds:.1f}s@{record.fps:.4g}"
        return status, size, repeats, name, text


def scan_videos(
    folder: Path | str,
    *,
    frames: int = 16,
    fps: float = 8.0,
    min_side: int = 32,
    trigger: str = "",
    prompt_template: str = DEFAULT_TEMPLATE,
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
) -> VideoFolder:
    """Probe every file below `folder` and record whether and how clips are cut from it.

    Refused are files that are truncated, have no video stream or no frames, are shorter than a clip
    of `frames` frames at `fps` frames per second, or have a side under `min_side` pixels. Captions,
    repeat folders, links and hidden files are treated as in
    `scan_images`.

    Raises DataError if the folder is missing or holds no usable video; the message contains the
    report.
    """
    _check_clip(frames, fps)
    captions = CaptionRules(trigger, prompt_template, count_tokens, max_tokens)

    def inspect(path: Path) -> dict[str, Any]:
        try:
            return _inspect(path, frames, fps, min_side)
        except DataError as error:
            raise Refused(str(error)) from error

    kind = MediaKind("a video", SUFFIXES, UNSUPPORTED, VideoRecord, inspect)
    found = VideoFolder(*scan_folder(folder, kind, captions))
    check_usable(found, "videos", _HINT)
    return found


def load_clip(
    record: VideoRecord, start_seconds: float, frames: int, fps: float, height: int, width: int
) -> np.ndarray:
    """A clip, uint8 (frames, height, width, 3), from `start_seconds` after the first frame on.

    Frame k is the one presented nearest to `start_seconds + k / fps`, so that variable frame rates
    keep their speed. Rotation is applied, black bars are cut off, the aspect is kept and the centre
    is cut out.

    Raises DataError if the clip does not lie inside the video, or cannot be decoded.
    """
    _check_clip(frames, fps)
    latest = _latest_start(record.seconds, record.fps, frames, fps)
    if latest is None or not 0 <= start_seconds <= latest + 1e-6:
        allowed = "none: the video is too short" if latest is None else f"0 to {latest:.3f}"
        raise DataError(
            f"`start_seconds`={start_seconds} is not possible for {frames} frames at {fps} fps of "
            f"'{record.path}'; allowed: {allowed}."
        )
    pictures = nearest_frames(record.path, start_seconds + np.arange(frames) / fps)
    try:
        fitted = [
            fit(pixels, height, width, record.box, record.pixel_aspect) for pixels in pictures
        ]
    except ValueError as error:
        raise DataError(f"'{record.path}' changes its picture size partway: {error}") from error
    return np.stack(fitted)


class VideoSet:
    """Draws clips from a video folder; nothing is kept in memory between draws.

    A file that fails to decode is left out from then on with a logged reason (`dropped`), and
    another one is drawn. A clip across a shot cut is drawn again, up to `CUT_TRIES` times; then the
    one with the weakest cut is used and noted in `cut_notes`. Not safe to share between threads.

    Raises DataError if `folder` has no usable video.
    """

    def __init__(
        self, folder: VideoFolder, frames: int, fps: float, height: int, width: int
    ) -> None:
        check_usable(folder, "videos", _HINT)
        _check_clip(frames, fps)
        self.folder, self.records = folder, folder.used
        self.frames, self.fps = frames, fps
        self.height, self.width = height, width
        self.dropped: dict[Path, str] = {}
        self.cut_notes: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, n: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Clips (n, 3, F, H, W), float32 in [-1, 1], and their prompts.

        Files are drawn by their repeats, clips evenly over a file's length.

        Raises DataError if no file is left that can be decoded; the message lists all reasons.
        """
        drawn = [self._draw(rng) for _ in range(n)]
        pixels = torch.from_numpy(np.stack([clip for clip, _ in drawn])).permute(0, 4, 1, 2, 3)
        return pixels.float().div(127.5).sub(1.0).contiguous(), [caption for _, caption in drawn]

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        while True:
            record = self._pick(rng)
            try:
                return self._clip(record, rng), record.caption
            except DataError as error:
                self.dropped[record.path] = str(error)
                logger.warning("not used from now on: %s", error)

    def _pick(self, rng: np.random.Generator) -> VideoRecord:
        weights = np.array([r.repeats * (r.path not in self.dropped) for r in self.records], float)
        if weights.sum() == 0:
            reasons = "\n".join(self.dropped.values())
            raise DataError(f"No video of '{self.folder.root}' can be decoded any more:\n{reasons}")
        return self.records[int(rng.choice(len(weights), p=weights / weights.sum()))]

    def _clip(self, record: VideoRecord, rng: np.random.Generator) -> np.ndarray:
        latest = _latest_start(record.seconds, record.fps, self.frames, self.fps)
        if latest is None:
            wanted = f"{self.frames} frames at {self.fps} fps"
            raise DataError(f"'{record.path}' is shorter than {wanted}")
        best, least = None, np.inf
        for _ in range(CUT_TRIES):
            clip = load_clip(
                record, rng.uniform(0, latest), self.frames, self.fps, self.height, self.width
            )
            strength = cut_strength(clip)
            if best is None or strength < least:
                best, least = clip, strength
            if least <= CUT_THRESHOLD:
                return best
        assert best is not None
        note = f"found no clip without a cut in {CUT_TRIES} tries"
        if record.path not in self.cut_notes:
            logger.info("%s: %s", record.path, note)
        self.cut_notes[record.path] = note
        return best


def _inspect(path: Path, frames: int, fps: float, min_side: int) -> dict[str, Any]:
    found = probe(path)
    rate = (found.frames - 1) / found.seconds if found.seconds > 0 else 0.0
    if _latest_start(found.seconds, rate, frames, fps) is None:
        raise DataError(
            f"too short: {found.frames} frames in {found.seconds:.2f} s, a clip of {frames} "
            f"frames at {fps:g} fps needs {(frames - 1) / fps:.2f} s"
        )
    box = _find_box(path, found)
    notes = list(found.notes)
    width, height = found.width, found.height
    if box is not None:
        width, height = box[2] - box[0], box[3] - box[1]
        notes.append(f"black bars were cut off; {width}x{height} px are left")
    if min(width, height) < min_side:
        small = f"{width}x{height} px is too small"
        raise DataError(f"{small}: the smallest side allowed is {min_side} px")
    return {
        "width": found.width,
        "height": found.height,
        "seconds": found.seconds,
        "frames": found.frames,
        "fps": rate,
        "box": box,
        "pixel_aspect": found.pixel_aspect,
        "notes": notes,
    }


def _find_box(path: Path, found: Probe) -> Box | None:
    """Black bars from frames across the whole file, which also checks that they decode."""
    frames = []
    for time in np.linspace(0.05, 0.95, BAR_SAMPLES) * found.seconds:
        frame = nearest_frames(path, np.array([time]))[0]
        if frame.shape[:2] != (found.height, found.width):
            raise DataError("its picture changes size partway; convert it to MP4")
        frames.append(frame.max(axis=2))
    return find_bars(np.stack(frames))


def _latest_start(seconds: float, rate: float, frames: int, fps: float) -> float | None:
    """The last start in seconds of a clip inside a video, None if it is too short.

    Half a source frame may be missing: the last frame is still the nearest one then.
    """
    latest = seconds - (frames - 1) / fps
    missing = 0.5 / rate if rate > 0 else 0.0
    return max(0.0, latest) if latest >= -missing - 1e-6 else None


def _check_clip(frames: int, fps: float) -> None:
    if frames < 1 or not fps > 0:
        raise DataError(
            f"`frames`={frames} at `fps`={fps} is not a clip; use 1 frame or more and a rate above "
            "0."
        )
