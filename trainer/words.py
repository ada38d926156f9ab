"""Small phrases that several messages share."""

from __future__ import annotations


def allowed_frames(frames: tuple[int, ...]) -> str:
    """ "8, 16, 24 or 32", or "1 to 32" for a run of consecutive lengths."""
    if len(frames) > 2 and frames == tuple(range(frames[0], frames[-1] + 1)):
        return f"{frames[0]} to {frames[-1]}"
    words = [str(count) for count in frames]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
