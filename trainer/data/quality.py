"""Remarks on usable images: too small, blurred, near-copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .images import ImageRecord
from .pixels import open_image, to_rgb

BLURRED = 0.1
"""Images whose sharpest edges are below this fraction of their contrast count as blurred."""
NEAR_COPY = 4.0
"""Images whose 16x16 thumbnails differ by at most this many of 255 levels (RMS) look the same."""
_LOOKED_AT = 512


@dataclass(frozen=True)
class Finding:
    """``kind`` is "small", "blurred" or "copy" (of ``other``); ``text`` says it in a sentence."""

    path: Path
    kind: str
    text: str
    other: Path | None = None


@dataclass(frozen=True)
class Seen:
    """What one image looks like: edge ``sharpness`` and a ``thumbnail`` (16, 16, 3) float."""

    sharpness: float
    thumbnail: np.ndarray


def examine(record: ImageRecord) -> Seen:
    """Open the image of ``record`` and measure it. Raises what Pillow and `to_rgb` raise."""
    with open_image(record.path) as image:
        image.draft("RGB", (_LOOKED_AT, _LOOKED_AT))
        rgb = to_rgb(image, record.background)[0]
    small = np.asarray(rgb.resize((16, 16), Image.Resampling.BOX), np.float32)
    rgb.thumbnail((_LOOKED_AT, _LOOKED_AT), Image.Resampling.LANCZOS)
    return Seen(sharpness(np.asarray(rgb.convert("L"))), small)


def sharpness(grey: np.ndarray) -> float:
    """The strongest edges of uint8 ``grey`` (H, W) over its contrast: about 1 for a hard edge.

    The 99.5th percentile of the Laplacian, so that flat pictures with few crisp lines count as
    sharp; 1 for a picture without contrast.
    """
    values = grey.astype(np.float64)
    contrast = np.percentile(values, 99) - np.percentile(values, 1)
    if contrast < 8 or min(values.shape) < 3:
        return 1.0
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float(np.percentile(np.abs(around - 4 * inner), 99.5) / contrast)


def findings(
    records: Sequence[ImageRecord], seen: dict[Path, Seen], height: int, width: int
) -> list[Finding]:
    """Small, blurred and nearly equal images among ``records``, for clips of this size."""
    found: list[Finding] = []
    for record in records:
        if record.height < height or record.width < width:
            text = f"{record.width}x{record.height} px will be enlarged to {width}x{height}"
            found.append(Finding(record.path, "small", text))
        look = seen.get(record.path)
        if look is not None and look.sharpness < BLURRED:
            found.append(
                Finding(record.path, "blurred", "looks blurred; the LoRA would learn the blur")
            )
    return found + _copies(records, seen)


def _copies(records: Sequence[ImageRecord], seen: dict[Path, Seen]) -> list[Finding]:
    found: list[Finding] = []
    kept: list[ImageRecord] = []
    for record in records:
        if record.path not in seen:
            continue
        own = seen[record.path].thumbnail
        twin = next((k for k in kept if _near(own, seen[k.path].thumbnail)), None)
        if twin is None:
            kept.append(record)
        elif twin.sha256 != record.sha256:
            found.append(
                Finding(record.path, "copy", f"looks the same as {twin.path.name}", twin.path)
            )
        else:
            found.append(
                Finding(record.path, "copy", f"is the same file as {twin.path.name}", twin.path)
            )
    return found


def _near(first: np.ndarray, second: np.ndarray) -> bool:
    return float(np.square(first - second).mean()) <= NEAR_COPY**2
