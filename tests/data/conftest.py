"""Real video files for the tests: small, and with content that says which frame is which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

VideoWriter = Callable[..., Path]


@pytest.fixture
def write_video() -> VideoWriter:
    return _write_video


def _write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    fps: float = 8,
    times: Sequence[float] | None = None,
    container_options: dict[str, str] | None = None,
    gop: int = 12,
    codec: str = "libx264",
) -> Path:
    """Write uint8 `pictures` (H, W, 3) at `fps`, or at `times` in seconds; H.264 has B-frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # MPEG-4 in AVI has a constant rate and nothing finer than it.
    tick = Fraction(1, 1000) if codec == "libx264" else 1 / Fraction(fps)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.options = {"crf": "4"} if codec == "libx264" else {"qscale": "1"}
        stream.codec_context.time_base = tick
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            seconds = number / fps if times is None else times[number]
            frame.pts, frame.time_base = round(seconds / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
