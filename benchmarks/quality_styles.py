"""Styles of the quality table, each cut in two halves, and all it takes from the mini world."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from minimaker.looks import (
    COUNT,
    SIZE,
    STYLES,
    Look,
    public_video,
    random_style,
    write_style_folder,
)
from minimaker.truth import JUDGE, PROMPTS, bundled_look, in_look, true_clips
from minimaker.world import FPS
from trainer.data.images import scan_images
from trainer.data.sidecars import find_sidecar
from trainer.evaluate.truth import draw_prompts
from trainer.files import file_sha256
from trainer.media import write_clip
from trainer.mini.words import style_folder
from trainer.runs.folder import slug

__all__ = ["JUDGE", "PROMPTS", "in_look", "public_video"]

VIDEOS, VIDEO_SEED = 240, 7001
SEEDS, STREAM = 10**6, 3
"""Style seeds that are drawn from, and the stream of random numbers that draws them."""


@dataclass(frozen=True)
class Style:
    """A style folder in two halves that share no image: every other one is held out.

    ``variants`` are further training folders by name ("uncaptioned", "20-images"), made from the
    training half. ``look`` renders true videos of it; None where only images exist. ``hash`` is of
    the held-out images. ``drawn`` styles are one sample of any style: no ablation is made of them.
    """

    name: str
    train: Path
    held_out: Path
    hash: str
    look: Look | None = None
    variants: dict[str, Path] = field(default_factory=dict)
    drawn: bool = False


def digest(*parts: object) -> str:
    """sha256 in hex over the texts of ``parts``."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8")).hexdigest()


def files_hash(folder: Path, pattern: str = "*") -> str:
    """sha256 over names and bytes of the files below ``folder`` that match ``pattern``."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return digest(*(f"{path.relative_to(folder)} {file_sha256(path)}" for path in files))


def find_style(
    given: str, work: Path, *, uncaptioned: bool = False, images: int | None = None
) -> Style:
    """The style of a bundled name or a folder, cut in two below ``work``.

    Raises DataError or ValueError for a folder that is missing or has fewer than four images.
    """
    source = style_folder(given) if given in STYLES else Path(given)
    return _cut(slug(source.name), source, bundled_look(source), work, uncaptioned, images)


def fresh_style(
    seed: int,
    work: Path,
    *,
    uncaptioned: bool = False,
    images: int | None = None,
    drawn: bool = False,
) -> Style:
    """A style that nobody has seen, drawn now; its true videos can be rendered.

    Its captioned stills are written to a temporary folder; their halves stay below ``work``.
    """
    look, name = random_style(np.random.default_rng(seed)), f"fresh-{seed}"
    with TemporaryDirectory() as folder:
        source = Path(folder) / name
        write_style_folder(source, look, COUNT, SIZE, seed)
        return _cut(name, source, look, work, uncaptioned, images, drawn)


def drawn_seeds(count: int, seed: int) -> list[int]:
    """Seeds of ``count`` different styles, which ``seed`` decides. Raises ValueError for none."""
    if count < 1:
        raise ValueError(f"`--styles` {count} draws no style; use 1 or more.")
    rng = np.random.default_rng((seed, STREAM))
    return [int(number) for number in rng.choice(SEEDS, size=count, replace=False)]


def _cut(
    name: str,
    source: Path,
    look: Look | None,
    work: Path,
    uncaptioned: bool,
    images: int | None,
    drawn: bool = False,
) -> Style:
    records = scan_images(source, min_side=1).used
    place = {sha: k for k, sha in enumerate(dict.fromkeys(r.sha256 for r in records))}
    if len(place) < 4:
        raise ValueError(f"'{source}' has {len(place)} different images; 4 or more are needed.")
    even = [r.path for r in records if place[r.sha256] % 2 == 0]
    odd = [r.path for r in records if place[r.sha256] % 2 == 1]
    if images is not None and not 0 < images <= len(even):
        raise ValueError(f"`--images`={images}: '{source}' has 1 to {len(even)} to train on.")
    captions = [r.caption for r in records]
    root = work / "styles" / f"{name}-{digest(*place, *captions)[:8]}"
    train, held_out = root / "train", root / "held-out"
    _copy(even, source, train)
    _copy(odd, source, held_out)
    variants: dict[str, Path] = {}
    if uncaptioned:
        variants["uncaptioned"] = _copy(even, source, root / "uncaptioned", captions=False)
    if images is not None:
        key = f"{images}-images"
        variants[key] = _copy(even[:images], source, root / key)
    return Style(name, train, held_out, files_hash(held_out), look, variants, drawn)


def _copy(files: Sequence[Path], source: Path, target: Path, captions: bool = True) -> Path:
    root = source.expanduser().absolute()
    for file in files:
        sidecar = find_sidecar(file) if captions else None
        for path in (file, *([] if sidecar is None else [sidecar])):
            place = target / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return target


def public_videos(folder: Path) -> None:
    """Fill ``folder`` with public video of the mini world and captions; does nothing when full."""
    captions = draw_prompts(VIDEOS, VIDEO_SEED, PROMPTS)
    missing = [k for k in range(VIDEOS) if not (folder / f"{k:03d}.txt").is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        clips = true_clips(captions, public_video, VIDEO_SEED)
        for number in missing:
            write_clip(clips[number], folder / f"{number:03d}.webp", FPS)
            (folder / f"{number:03d}.txt").write_text(captions[number] + "\n", encoding="utf-8")
