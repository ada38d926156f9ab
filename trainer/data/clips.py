"""Frames of video files by presentation time, upright.

Containers are read with PyAV, animated GIF and WebP with Pillow. Times are seconds after the first
frame.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from .pixels import open_image, to_rgb
from .records import DataError

ANIMATIONS = frozenset({".gif", ".webp"})
# A playlist or an image sequence named .mp4 must not make ffmpeg open other files or the network.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg",
}
_WORTH_THREADS = 640 * 360  # pixels
_HIGH_DYNAMIC_RANGE = (16, 18)  # transfer characteristics PQ and HLG (ITU-T H.273)
_READ_ERRORS = (av.error.FFmpegError, OSError, ValueError, EOFError, SyntaxError, IndexError)

Frame = tuple[float, Callable[[], np.ndarray]]  # seconds, and a function that makes uint8 (H, W, 3)


@dataclass(frozen=True)
class Probe:
    """What the file's headers say. `seconds` is the time from the first to the last frame."""

    width: int
    height: int
    seconds: float
    frames: int
    pixel_aspect: float
    notes: tuple[str, ...]


def probe(path: Path) -> Probe:
    """Read the time of every frame of a video, and decode the first.

    Raises DataError with the reason, if the file is not a video, is cut off, or has no frames.
    """
    try:
        return _probe_animation(path) if is_animation(path) else _probe_container(path)
    except DataError:
        raise
    except av.error.InvalidDataError as error:
        raise DataError("truncated or not a video: its data is invalid") from error
    except _READ_ERRORS as error:
        raise DataError(f"cannot be decoded: {_plain(error)}") from error


def nearest_frames(path: Path, times: np.ndarray) -> list[np.ndarray]:
    """For each of the ascending `times` (seconds) the frame presented nearest to it.

    Returns len(times) upright pictures, uint8 (H, W, 3).

    Raises DataError if the file cannot be decoded there, or ends before the last time.
    """
    try:
        with closing(_frames(path, float(times[0]))) as frames:
            return _pick_nearest(frames, times)
    except DataError as error:
        raise DataError(f"'{path}': {error}") from error
    except _READ_ERRORS as error:
        where = f"'{path}' cannot be decoded near {times[0]:.2f} s"
        raise DataError(f"{where}: {_plain(error)}") from error


def is_animation(path: Path) -> bool:
    """Whether Pillow reads this file, not PyAV."""
    return path.suffix.lower() in ANIMATIONS


def _pick_nearest(frames: Iterator[Frame], times: np.ndarray) -> list[np.ndarray]:
    picked: list[np.ndarray] = []
    before: Frame | None = None
    for frame in frames:
        if before is not None and frame[0] < before[0]:
            raise DataError("its time stamps run backwards; convert it to MP4")
        while len(picked) < len(times) and frame[0] >= times[len(picked)]:
            wanted = times[len(picked)]
            # Half a microsecond: time stamps are rounded, and ties go to the earlier frame.
            earlier = before is not None and wanted - before[0] <= frame[0] - wanted + 5e-7
            chosen = before if earlier and before is not None else frame
            picked.append(chosen[1]())
        if len(picked) == len(times):
            return picked
        before = frame
    step = float(times[1] - times[0]) if len(times) > 1 else 0.1
    if before is None or times[-1] - before[0] > step:
        end = "there are no frames" if before is None else f"the last frame is at {before[0]:.2f} s"
        raise DataError(f"a frame near {times[-1]:.2f} s is needed, but {end}; the file is cut off")
    last = before[1]()
    return [*picked, *[last] * (len(times) - len(picked))]


def _frames(path: Path, start: float) -> Generator[Frame, None, None]:
    return _animation_frames(path) if is_animation(path) else _container_frames(path, start)


def _open(path: Path) -> Any:
    # Do not refuse a video because of a title that is not UTF-8.
    return av.open(str(path), options=_OPTIONS, metadata_errors="replace")


def _container_frames(path: Path, start: float) -> Generator[Frame, None, None]:
    """All frames from a key frame at or before `start` on."""
    with _open(path) as container:
        stream = _video_stream(container)
        if stream.width * stream.height < _WORTH_THREADS:
            stream.codec_context.thread_count = 1  # starting threads takes longer than the decoding
        else:
            stream.thread_type = "AUTO"
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None:
            raise DataError("none of its frames can be decoded")
        origin = _presented(first)
        found = chain([first], frames) if start <= 0 else _seek(container, stream, origin, start)
        if found is not None:
            yield from (_as_frame(frame, origin) for frame in found)
            return
    yield from _container_frames(path, 0.0)


def _seek(container: Any, stream: Any, origin: int, start: float) -> Iterator[Any] | None:
    """Decoded frames from a key frame at or before `start` on; None if none can be reached.

    MPEG streams have no index and may land past the target: then try from further back.
    """
    for back in (0.0, 2.0, 10.0):
        if start < back:
            return None
        target = origin + int((start - back) / stream.time_base)
        container.seek(target, stream=stream, backward=True)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is not None and _presented(first) <= target:
            return chain([first], frames)
    return None


def _as_frame(frame: av.VideoFrame, origin: int) -> Frame:
    def pixels() -> np.ndarray:
        if frame.is_corrupt:
            raise DataError("the data of a frame is damaged")
        turned = np.rot90(frame.to_ndarray(format="rgb24"), k=_quarter_turns(frame))
        return np.ascontiguousarray(turned)

    assert frame.time_base is not None
    return float((_presented(frame) - origin) * frame.time_base), pixels


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise quarter turns that make the frame upright."""
    return round(frame.rotation / 90)


def _presented(frame: av.VideoFrame) -> int:
    if frame.pts is None:
        raise DataError("its frames have no time stamps; convert it to MP4")
    return frame.pts


def _video_stream(container: Any) -> Any:
    if not container.streams:
        raise DataError("truncated or not a video: it has no streams")
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise DataError(f"it has no video stream, only {', '.join(kinds)}")
    return streams[0]


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _probe_container(path: Path) -> Probe:
    with _open(path) as container:
        stream = _video_stream(container)
        first = next(container.decode(stream), None)
        if first is None:
            raise DataError("none of its frames can be decoded")
        _check_times_are_kept(container, stream)
        notes = []
        if stream.codec_context.color_trc in _HIGH_DYNAMIC_RANGE:
            notes.append("high dynamic range (HDR), used without tone mapping")
        aspect = float(stream.sample_aspect_ratio or 1)
    ticks, frames, time_base = _span(path, _presented(first))
    width, height = first.width, first.height
    if first.rotation:
        notes.append(f"rotated by {first.rotation % 360} degrees, turned upright")
    if _quarter_turns(first) % 2:
        width, height, aspect = height, width, 1 / aspect
    return Probe(width, height, float(ticks * time_base), frames, aspect, tuple(notes))


def _check_times_are_kept(container: Any, stream: Any) -> None:
    """Raise `DataError` for AVI files that do not say when a frame is shown."""
    reordered = stream.codec_context.has_b_frames or stream.codec_context.name in ("h264", "hevc")
    if container.format.name == "avi" and reordered:
        raise DataError("AVI keeps no time stamps of B-frames; convert it to MP4")


def _span(path: Path, origin: int) -> tuple[int, int, Fraction]:
    """From all packets: ticks from `origin` to the last frame, number of frames, seconds a tick."""
    with _open(path) as container:
        stream = _video_stream(container)
        # Numbers only: keeping the packets would keep the whole file in memory.
        packets = [
            (packet.pts, packet.duration or 0, packet.is_corrupt)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        ticks = max([origin, *(pts for pts, _, _ in packets if pts is not None)]) - origin
        _check_whole(stream, packets, ticks)
        return ticks, len(packets), stream.time_base


def _check_whole(stream: Any, packets: list[tuple[int | None, int, bool]], ticks: int) -> None:
    """Raise `DataError` if there is less of a stream than its header promises.

    `packets` are (presentation time, duration, corrupt) and `ticks` the time they span, in units of
    the stream's time base.
    """
    if packets[-1][2]:
        raise DataError(f"truncated: it ends after {len(packets)} of {stream.frames} frames")
    declared = stream.duration or 0
    longest = max(duration for _, duration, _ in packets)
    quarter_second = 0.25 / float(stream.time_base)
    if declared - ticks > max(0.05 * declared, 3 * longest, quarter_second):
        here, promised = (float(count * stream.time_base) for count in (ticks, declared))
        raise DataError(f"truncated: it has {here:.1f} of {promised:.1f} s")


def _animation_frames(path: Path) -> Generator[Frame, None, None]:
    """Every frame of a GIF or WebP; like in browsers, a duration of 10 ms or less means 100 ms."""
    seconds = 0.0
    with open_image(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            yield seconds, partial(_rgb, image.copy())
            shown = image.info.get("duration", 0)
            seconds += (shown if shown > 10 else 100) / 1000


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(image)[0])


def _probe_animation(path: Path) -> Probe:
    with open_image(path) as image:
        width, height = image.size
    times = [seconds for seconds, _ in _animation_frames(path)]
    if len(times) < 2:
        raise DataError("a still image, not an animation; put it into the image folder")
    return Probe(width, height, times[-1], len(times), 1.0, ())


def _plain(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
