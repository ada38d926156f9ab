"""Comparison pictures: labelled grids of clips that play in sync, and film strips on a still page.

Everything takes and returns uint8 frames (F, H, W, 3). Small clips are enlarged by a whole factor
with the nearest neighbour, so that every pixel that is seen is a pixel the model made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Column = tuple[str, np.ndarray]
"""A label and the uint8 frames (F, H, W, 3) below it."""
Row = tuple[str, list[Column]]
"""A caption (usually the prompt) and the columns of that row."""

PAPER = (250, 249, 246)
INK = (38, 42, 51)
MUTED = (112, 117, 128)
RULE = (221, 219, 213)
MARGIN = 24
GAP = 12
CAPTION_SIZE = 20
LABEL_SIZE = 16
SMALL_CLIP = 192
"""Clips lower than this many pixels are enlarged towards it when no ``scale`` is given."""


def check_frames(frames: np.ndarray, name: str = "frames") -> np.ndarray:
    """``frames`` if they are uint8 (F, H, W, 3) with at least one frame, else ``ValueError``."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"`{name}` must be uint8 (frames, height, width, 3) with at least one frame, got "
            f"{frames.dtype} {tuple(frames.shape)}; convert float pixels in [-1, 1] with "
            "trainer.media.to_frames."
        )
    return frames


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Nearest-neighbour enlargement of (F, H, W, 3) by a whole factor."""
    if factor != int(factor) or factor < 1:
        raise ValueError(f"`scale`={factor} must be a whole number of 1 or more (nearest pixels).")
    return frames if factor == 1 else frames.repeat(int(factor), axis=1).repeat(int(factor), axis=2)


def side_by_side(
    columns: list[Column], *, scale: int | None = None, loops: int = 1, title: str = ""
) -> np.ndarray:
    """Clips side by side under their labels, playing in sync: (F * loops, H, W, 3) uint8.

    Arguments and errors as `grid`; ``title`` stands above the labels.
    """
    return grid([(title, columns)], scale=scale, loops=loops)


def grid(rows: list[Row], *, scale: int | None = None, loops: int = 1) -> np.ndarray:
    """Animated comparison: one labelled row per prompt, one clip per column: (F * loops, H, W, 3).

    Labels are written once on top when all rows have the same ones, else above every clip.
    ``scale`` None picks a factor that makes the lowest clip about 192 pixels high; shorter clips
    start again until the longest has ended. Raises ``ValueError`` for empty rows, for frames that
    are not uint8 (F, H, W, 3) and for ``loops`` below 1.
    """
    if loops < 1:
        raise ValueError(f"`loops`={loops} must be 1 or more.")
    rows = _scaled(rows, scale, goal=SMALL_CLIP)
    shared = len({tuple(label for label, _ in columns) for _, columns in rows}) == 1
    widths = _column_widths(rows)
    page = _Page(sum(widths) + GAP * (len(widths) - 1))
    places: list[tuple[int, int, np.ndarray]] = []
    for index, (caption, columns) in enumerate(rows):
        page.row_gap(index)
        page.caption(caption)
        if index == 0 or not shared:
            page.labels([label for label, _ in columns], widths)
        left = MARGIN
        for (_, clip), width in zip(columns, widths, strict=False):
            places.append((page.top, left + (width - clip.shape[2]) // 2, clip))
            left += width + GAP
        page.top += max(clip.shape[1] for _, clip in columns)
    return _play(page, places, loops)


def contact_sheet(
    rows: list[Row], *, scale: int | None = None, max_frames: int | None = None
) -> Image.Image:
    """A still page: under each caption one film strip per column, time running to the right.

    ``scale`` None makes the lowest frame about 96 pixels high; ``max_frames`` keeps so many
    frames of a longer clip, evenly spread from first to last. Errors as `grid`.
    """
    rows = _scaled(rows, scale, goal=SMALL_CLIP // 2)
    if max_frames is not None:
        rows = [(c, [(label, _thin(clip, max_frames)) for label, clip in cs]) for c, cs in rows]
    font = _font(LABEL_SIZE)
    clips = [column for _, columns in rows for column in columns]
    gutter = max(_length(label, font) for label, _ in clips)
    gutter += GAP if gutter else 0
    page = _Page(gutter + max(len(clip) * (clip.shape[2] + 2) - 2 for _, clip in clips))
    places: list[tuple[int, int, np.ndarray]] = []
    for index, (caption, columns) in enumerate(rows):
        page.row_gap(index)
        page.caption(caption)
        for label, clip in columns:
            height, width = clip.shape[1:3]
            page.texts.append((MARGIN, page.top + (height - LABEL_SIZE) // 2, label, font, MUTED))
            left = MARGIN + gutter
            for frame in clip[:, None]:
                places.append((page.top, left, frame))
                left += width + 2
            page.top += height + 6
        page.top -= 6
    return Image.fromarray(_play(page, places, 1)[0])


@dataclass
class _Page:
    """Things from top to bottom; texts are collected and drawn when the height is known."""

    width: int  # of the content, without margins

    def __post_init__(self) -> None:
        self.top = MARGIN
        self.texts: list[tuple[int, int, str, ImageFont.FreeTypeFont, tuple[int, int, int]]] = []
        self.rules: list[int] = []

    def row_gap(self, index: int) -> None:
        if index:
            self.rules.append(self.top + GAP + 4)
            self.top += 2 * GAP + 8

    def caption(self, text: str) -> None:
        font = _font(CAPTION_SIZE)
        for line in _wrap(text, font, self.width):
            self.texts.append((MARGIN, self.top, line, font, INK))
            self.top += CAPTION_SIZE + 6
        self.top += 4 if text else 0

    def labels(self, labels: list[str], widths: list[int]) -> None:
        font = _font(LABEL_SIZE)
        left, lines = MARGIN, [_wrap(t, font, w) for t, w in zip(labels, widths, strict=False)]
        tallest = max(map(len, lines))
        for block, width in zip(lines, widths, strict=False):
            top = self.top + (tallest - len(block)) * (LABEL_SIZE + 4)
            for line in block:
                x = left + (width - _length(line, font)) // 2
                self.texts.append((x, top, line, font, MUTED))
                top += LABEL_SIZE + 4
            left += width + GAP
        self.top += tallest * (LABEL_SIZE + 4) + 4 if tallest else 0

    def draw(self) -> np.ndarray:
        """The page (H, W, 3) with its texts; both sides even, so that any codec takes it."""
        height, width = self.top + MARGIN, self.width + 2 * MARGIN
        image = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        pen = ImageDraw.Draw(image)
        for y in self.rules:
            pen.line((MARGIN, y, MARGIN + self.width, y), fill=RULE)
        for x, y, text, font, ink in self.texts:
            pen_x = float(x)
            for word in text.split():
                pen.text((pen_x, y), word, font=font, fill=ink)
                pen_x += font.getlength(word) + _space(font)
        return np.asarray(image)


def _scaled(rows: list[Row], scale: int | None, goal: int) -> list[Row]:
    """Rows with checked and enlarged clips."""
    clips = [check_frames(clip, label) for _, columns in rows for label, clip in columns]
    if not clips or any(not columns for _, columns in rows):
        raise ValueError("A comparison needs at least one row, and every row at least one clip.")
    if scale is None:
        scale = max(1, -(-goal // min(clip.shape[1] for clip in clips)))
    return [(c, [(label, enlarge(clip, scale)) for label, clip in cs]) for c, cs in rows]


def _column_widths(rows: list[Row]) -> list[int]:
    count = max(len(columns) for _, columns in rows)
    return [max(cs[k][1].shape[2] for _, cs in rows if k < len(cs)) for k in range(count)]


def _play(page: _Page, places: list[tuple[int, int, np.ndarray]], loops: int) -> np.ndarray:
    """Paste every clip at its (top, left) on the page; shorter clips start again."""
    length = max(len(clip) for _, _, clip in places) * loops
    frames = np.repeat(page.draw()[None], length, axis=0)
    for top, left, clip in places:
        height, width = clip.shape[1:3]
        frames[:, top - 1 : top + height + 1, left - 1 : left + width + 1] = RULE
        frames[:, top : top + height, left : left + width] = clip[np.arange(length) % len(clip)]
    return frames


def _thin(clip: np.ndarray, count: int) -> np.ndarray:
    if count < 1:
        raise ValueError(f"`max_frames`={count} must be 1 or more.")
    keep = np.linspace(0, len(clip) - 1, min(count, len(clip))).round().astype(int)
    return clip[keep]


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("This Pillow has no FreeType; install it with `pip install -U Pillow`.")
    return font


def _space(font: ImageFont.FreeTypeFont) -> float:
    """Pixels between words: Pillow's own font sets them so close that "1 step" reads "1step"."""
    return 0.3 * font.size


def _length(text: str, font: ImageFont.FreeTypeFont) -> int:
    """Width of a line in pixels."""
    words = text.split()
    return int(sum(map(font.getlength, words)) + _space(font) * max(len(words) - 1, 0))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of ``text`` that fit ``width`` pixels; a word that does not fit is cut with dots."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer, font) <= width:
            lines[-1] = longer
            continue
        while len(word) > 1 and font.getlength(word) > width:
            word = word.rstrip("…")[:-1] + "…"
        lines.append(word)
    return lines
