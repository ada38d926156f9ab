"""The page's image folder: its scan, thumbnails, and editable captions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.data.captions import CaptionRules, raw_caption, write_captions
from trainer.data.images import ImageFolder, ImageRecord, scan_images
from trainer.data.pixels import WHITE, open_image, to_rgb
from trainer.data.quality import Finding, Seen, examine, findings
from trainer.data.scan import SHARED
from trainer.data.sidecars import find_sidecar
from trainer.families import token_counter
from trainer.paths import BUNDLED

THUMB = 176
"""Side of a thumbnail in pixels."""
PAGE = 24
"""Thumbnails on a page."""


@dataclass(frozen=True)
class Scan:
    """A scanned folder with remarks."""

    folder: ImageFolder
    rules: CaptionRules
    found: list[Finding]

    @property
    def used(self) -> list[ImageRecord]:
        return self.folder.used

    @property
    def uncaptioned(self) -> list[ImageRecord]:
        return [r for r in self.used if not r.captioned]

    def without(self, image: Path) -> Scan:
        """The scan after ``image`` was deleted."""
        double = f"same file as {image.relative_to(self.folder.root).as_posix()}"
        records = [
            replace(r, notes=[note for note in r.notes if note != double])
            for r in self.folder.records
            if r.path != image
        ]
        found = [each for each in self.found if image not in (each.path, each.other)]
        return replace(self, folder=replace(self.folder, records=records), found=found)


@dataclass(frozen=True)
class ScanOptions:
    """What decides how a folder is read; sizes in pixels."""

    trigger: str = ""
    prompt_template: str = "[trigger]"
    min_side: int = 32
    height: int = 64
    width: int = 64
    model: str = BUNDLED
    background: str = "#ffffff"

    def rules(self) -> CaptionRules:
        """How captions become prompts. Raises what `CaptionRules` and `token_counter` raise."""
        count, longest = token_counter(self.model)
        return CaptionRules(self.trigger, self.prompt_template, count, longest)


class Scans:
    """Scans folders, caches image measurements, and makes thumbnails. Thread-safe."""

    def __init__(self, thumbs: Path) -> None:
        self._thumbs = thumbs
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[object, ...], Seen] = OrderedDict()

    def scan(self, folder: Path, options: ScanOptions) -> Scan:
        """Open every file. Raises DataError with the whole report when no image can be used."""
        rules = options.rules()
        found = scan_images(
            folder,
            min_side=options.min_side,
            trigger=options.trigger,
            prompt_template=options.prompt_template,
            background=options.background,
            count_tokens=rules.count_tokens,
            max_tokens=rules.max_tokens,
        )
        with ThreadPoolExecutor(2) as pool:
            looks = list(pool.map(self._look, found.used))
        seen = {r.path: look for r, look in zip(found.used, looks, strict=True) if look}
        return Scan(found, rules, findings(found.used, seen, options.height, options.width))

    def _look(self, record: ImageRecord) -> Seen | None:
        status = record.path.stat()
        key = record.path, status.st_mtime_ns, status.st_size, record.background
        with self._lock:
            if key in self._seen:
                return self._seen[key]
        try:
            look = examine(record)
        except (OSError, ValueError):
            return None
        with self._lock:
            self._seen[key] = look
            while len(self._seen) > 20_000:
                self._seen.popitem(last=False)
        return look

    def thumbnail(self, record: ImageRecord) -> Path:
        """A small WebP of the image in the page's own folder, made once for every content."""
        fill = "" if record.background == WHITE else f"-{bytes(record.background).hex()}"
        target = self._thumbs / f"{record.sha256[:32]}{fill}.webp"
        if not target.is_file():
            with open_image(record.path) as image:
                image.draft("RGB", (2 * THUMB, 2 * THUMB))
                picture = to_rgb(image, record.background)[0]
            picture.thumbnail((THUMB, THUMB))
            staged = target.with_suffix(f".{threading.get_ident()}.tmp")
            picture.save(staged, "WEBP", quality=80)
            staged.replace(target)
        return target


def save_captions(scan: Scan, captions: Sequence[tuple[Path, str]]) -> Scan:
    """Write captions of images; the scan with what the model now sees, also of other images that
    share the files.
    """
    written = set(write_captions(captions))
    records = [
        _read_again(scan.rules, scan.folder.root, record)
        if record.status == "used" and find_sidecar(record.path) in written
        else record
        for record in scan.folder.records
    ]
    return replace(scan, folder=replace(scan.folder, records=records))


def told_anew(scan: Scan, rules: CaptionRules) -> Scan:
    """The scan under other rules, as after a change of the trigger word; no image is opened."""
    records = [
        _read_again(rules, scan.folder.root, record) if record.status == "used" else record
        for record in scan.folder.records
    ]
    return replace(scan, rules=rules, folder=replace(scan.folder, records=records))


def written_captions(scan: Scan) -> list[tuple[Path, str]]:
    """The caption of every used image as it is written, "" where there is none."""
    return [(record.path, raw_caption(record.path, scan.folder.root)) for record in scan.used]


def _read_again(rules: CaptionRules, root: Path, record: ImageRecord) -> ImageRecord:
    caption = rules.read(record.path, root)
    kept = [note for note in record.notes if not note.startswith("caption: ") or SHARED in note]
    notes = [*kept, *(f"caption: {problem}" for problem in caption.problems)]
    return replace(record, caption=caption.text, caption_source=caption.source, notes=notes)
