"""The style images: scanning a folder, loading pixels, drawing batches."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .captions import DEFAULT_TEMPLATE, CaptionRules
from .pixels import (
    LARGE_PIXELS,
    READABLE,
    SIDEWAYS,
    WHITE,
    content_of,
    cover,
    open_image,
    orientation,
    read_smaller,
    rgb_of,
    to_rgb,
)
from .records import DataError, MediaFolder, MediaRecord, check_usable
from .scan import MediaKind, Refused, scan_folder

__all__ = [
    "DataError",
    "ImageFolder",
    "ImageRecord",
    "ImageSet",
    "load_image",
    "scan_images",
]

logger = logging.getLogger(__name__)

Generator = torch.Generator | np.random.Generator
Crop = Literal["center", "random"]
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
)
OTHER_IMAGES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".xcf", ".kra", ".exr", ".dng", ".cr2"}
)
"""Kinds that users expect to work; opened in any case, because names can be wrong."""
UNSUPPORTED = {".tga": "a Targa image, which is not read; export it as PNG"}
MIB = 2**20
BLANK = 2.0
"""An image whose 16x16 thumbnail varies by fewer levels of 255 than this is blank."""
NEARLY_BLACK = 10.0
"""... whose brightest spot in it is below this is nearly black."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord(MediaRecord):
    """One file of a style folder; see `MediaRecord`.

    `background` (R, G, B) fills what is transparent in it, here and wherever it is loaded.
    """

    background: tuple[int, int, int] = WHITE


@dataclass(frozen=True)
class ImageFolder(MediaFolder[ImageRecord]):
    """A scanned style folder."""

    def halves(self, seed: int) -> tuple[ImageFolder, ImageFolder]:
        """Two folders, to train on and to hold out, that share no image, not even as a copy.

        Raises DataError if there are fewer than two different images.
        """
        groups: dict[str, list[ImageRecord]] = {}
        for record in self.used:
            groups.setdefault(record.sha256, []).append(record)
        if len(groups) < 2:
            raise DataError(
                f"'{self.root}' has {len(groups)} different image(s); at least 2 are needed, "
                "because half are kept for measuring. Add images."
            )
        order = np.random.default_rng(seed).permutation(len(groups))
        half = (len(groups) + 1) // 2
        first = {sha for sha, place in zip(groups, order, strict=True) if place < half}
        train = [record for record in self.used if record.sha256 in first]
        held_out = [record for record in self.used if record.sha256 not in first]
        return replace(self, records=train), replace(self, records=held_out)


def scan_images(
    folder: Path | str,
    *,
    min_side: int = 64,
    trigger: str = "",
    prompt_template: str = DEFAULT_TEMPLATE,
    background: str = "#ffffff",
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
) -> ImageFolder:
    """Open every file below `folder` once and record whether and how it is used.

    In a folder called `10_name` every image counts ten times (the nearest such folder decides,
    `0_name` leaves its images out). The name is never used as a caption: an image without one gets
    the prompt template, and the folder's notes say so. Images whose shorter side is under
    `min_side` pixels are refused. The content decides what a file is, not its name. `background`
    ("#rrggbb" or a colour's name) fills what is transparent. `count_tokens` and `max_tokens` make
    the report list prompts that the text encoder would cut off.

    Raises DataError if the folder is missing or holds no usable image; the message contains the
    report.
    """
    captions = CaptionRules(trigger, prompt_template, count_tokens, max_tokens)

    colour = rgb_of(background)

    def inspect(path: Path) -> dict[str, Any]:
        return {**_inspect(path, min_side, colour), "background": colour}

    kind = MediaKind(
        "an image", SUFFIXES | OTHER_IMAGES, UNSUPPORTED, ImageRecord, inspect, _hidden_image
    )
    found = ImageFolder(*scan_folder(folder, kind, captions))
    check_usable(found, "images", "Put PNG, JPEG or WebP files into the folder.")
    return found


def load_image(
    record: ImageRecord,
    height: int,
    width: int,
    *,
    crop: Crop = "center",
    generator: Generator | None = None,
) -> np.ndarray:
    """The image as uint8 (height, width, 3): resized (Lanczos, aspect kept) to cover, then cropped.

    Raises DataError if the file can no longer be read; ValueError for `crop="random"` without a
    `generator`, or an unknown `crop`.
    """
    covered = _load_cover(record, height, width)
    return np.array(_crop(covered, height, width, crop, generator))


class ImageSet:
    """Draws batches from a style folder with a bounded amount of memory.

    Resized images are kept as uint8 in a least-recently-used cache of at most `cache_mib` MiB; all
    others are read again. A file that has become unreadable since the scan is left out with a
    logged reason (see `dropped`) and the next image takes its place. Not safe to share between
    threads.

    Raises DataError if `folder` has no usable image, or (later) when the last one became
    unreadable.
    """

    def __init__(
        self,
        folder: ImageFolder,
        height: int,
        width: int,
        *,
        crop: Crop = "center",
        cache_mib: float = 256.0,
    ) -> None:
        check_usable(folder, "images", "Put PNG, JPEG or WebP files into the folder.")
        self.folder, self.records = folder, folder.used
        self.height, self.width = height, width
        self.crop = crop
        self.dropped: dict[Path, str] = {}
        self.cache_bytes = 0
        self._cache_limit = int(cache_mib * MIB)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.records)

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """`n` independent indices, weighted by repeats; dropped images are left out."""
        weights = np.array([r.repeats * (r.path not in self.dropped) for r in self.records], float)
        if weights.sum() == 0:
            raise self._none_left()
        return [int(i) for i in rng.choice(len(weights), size=n, p=weights / weights.sum())]

    def batch(
        self, indices: Sequence[int], generator: Generator | None = None
    ) -> tuple[Tensor, list[str]]:
        """Pixels (N, 3, H, W), float32 in [-1, 1], and the N prompts.

        `generator` places random crops.

        Raises DataError if no image is left that can be read; ValueError for random crops without a
        `generator`.
        """
        frames, captions = [], []
        for index in indices:
            place, covered = self._readable(index)
            frames.append(_crop(covered, self.height, self.width, self.crop, generator))
            captions.append(self.records[place].caption)
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        return pixels.float().div(127.5).sub(1.0).contiguous(), captions

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        """The image at `index`, or the next one that can be read."""
        for step in range(len(self.records)):
            place = (index + step) % len(self.records)
            record = self.records[place]
            if record.path in self.dropped:
                continue
            try:
                return place, self._covered(place)
            except DataError as error:
                self.dropped[record.path] = str(error)
                logger.warning("not used from now on: %s", error)
        raise self._none_left()

    def _covered(self, index: int) -> np.ndarray:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        pixels = _load_cover(self.records[index], self.height, self.width)
        if pixels.nbytes <= self._cache_limit:
            self._cache[index] = pixels
            self.cache_bytes += pixels.nbytes
            while self.cache_bytes > self._cache_limit:
                self.cache_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def _none_left(self) -> DataError:
        reasons = "\n".join(self.dropped.values())
        return DataError(
            f"No image of '{self.folder.root}' can be read any more; is its disk still "
            f"connected?\n{reasons}"
        )


def _hidden_image(path: Path) -> str:
    """Why a file of an unknown suffix is left out, if its content is an image; else ""."""
    what = content_of(path)
    if what not in READABLE:
        return ""
    return f"its content is {what}; rename it to end in {READABLE[what]} to use it"


def _inspect(path: Path, min_side: int, background: tuple[int, int, int]) -> dict[str, Any]:
    """Decode the image once; its upright size and notes, or `Refused`."""
    try:
        with open_image(path) as image:
            (width, height), notes = _checked(image, background)
            if path.suffix.lower() in OTHER_IMAGES:
                notes.append(f"named {path.suffix}, but it is a {image.format}")
    except OSError as error:
        if error.errno is not None:
            raise  # the disk or permissions, not the content
        raise Refused(f"broken or cut off: {_plain(error)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on broken files
        raise Refused(_plain(error)) from error
    if min(width, height) < min_side:
        raise Refused(
            f"{width}x{height} px is too small: the smallest side allowed is {min_side} px; use a "
            "larger version"
        )
    return {"width": width, "height": height, "notes": notes}


def _checked(
    image: Image.Image, background: tuple[int, int, int]
) -> tuple[tuple[int, int], list[str]]:
    """Decode all of `image`: its upright (width, height) and notes."""
    frames = getattr(image, "n_frames", 1)
    # Cameras store a preview as a second MPO frame: that is no animation.
    animated = frames > 1 and image.format != "MPO"
    notes = [f"only the first of {frames} frames is used"] if animated else []
    width, height = image.size
    if width * height > LARGE_PIXELS:
        notes.append(f"{width * height / 1e6:.0f} megapixels: it is scaled down, which takes time")
    size = (height, width) if orientation(image) in SIDEWAYS else (width, height)
    # JPEGs are checked at an eighth of their size: all bytes are read, in a third of the time.
    image.draft("", (max(1, width // 8), max(1, height // 8)))
    rgb, changes = to_rgb(image, background)
    thumbnail = np.asarray(rgb.resize((16, 16), Image.Resampling.BOX), np.float32)
    if thumbnail.std(axis=(0, 1)).max() < BLANK:
        changes.append("looks blank: a single colour")
    elif thumbnail.max() < NEARLY_BLACK:
        changes.append("is nearly black")
    return size, [*notes, *changes]


def _load_cover(record: ImageRecord, height: int, width: int) -> np.ndarray:
    try:
        with open_image(record.path) as image:
            read_smaller(image, height, width)
            return cover(to_rgb(image, record.background)[0], height, width)
    except Exception as error:  # as in `_inspect`; the reason is passed on
        raise DataError(f"'{record.path}' cannot be read any more: {_plain(error)}") from error


def _crop(
    pixels: np.ndarray, height: int, width: int, crop: Crop, generator: Generator | None
) -> np.ndarray:
    spare_y, spare_x = pixels.shape[0] - height, pixels.shape[1] - width
    if crop == "center":
        top, left = spare_y // 2, spare_x // 2
    elif crop == "random":
        if generator is None:
            raise ValueError('`crop`="random" needs a `generator`; pass one or use "center".')
        top, left = _below(spare_y + 1, generator), _below(spare_x + 1, generator)
    else:
        raise ValueError(f'`crop`={crop!r} is not known; use "center" or "random".')
    return pixels[top : top + height, left : left + width]


def _below(limit: int, generator: Generator) -> int:
    if isinstance(generator, torch.Generator):
        return int(torch.randint(limit, (), generator=generator, device=generator.device))
    return int(generator.integers(limit))


def _plain(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
