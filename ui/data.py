"""The image folder as the page shows it: thumbnails, captions as the model sees them, a report."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from trainer.data.captions import CaptionRules, write_caption
from trainer.data.images import ImageFolder, ImageRecord, scan_images
from trainer.data.pixels import open_image, to_rgb
from trainer.data.quality import Finding, Seen, examine, findings
from trainer.data.scan import SHARED
from trainer.data.sidecars import find_sidecar
from trainer.families.tokens import token_counter

THUMB = 176
"""Side of a thumbnail in pixels."""
PAGE = 24
"""Thumbnails on a page."""
MOST_ROWS = 400


@dataclass(frozen=True)
class Scan:
    """A scanned folder with what is worth knowing of it."""

    folder: ImageFolder
    rules: CaptionRules
    found: list[Finding]

    @property
    def used(self) -> list[ImageRecord]:
        return self.folder.used

    @property
    def uncaptioned(self) -> list[ImageRecord]:
        return [r for r in self.used if not r.captioned]


@dataclass(frozen=True)
class ScanOptions:
    """What decides how a folder is read; sizes in pixels."""

    trigger: str = ""
    prompt_template: str = "[trigger]"
    min_side: int = 32
    height: int = 64
    width: int = 64
    model: str = "mini"


class Scans:
    """Scans folders, keeps what the images look like, and makes thumbnails. Thread-safe."""

    def __init__(self, thumbs: Path) -> None:
        self._thumbs = thumbs
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[Path, int, int], Seen] = OrderedDict()

    def scan(self, folder: Path, options: ScanOptions) -> Scan:
        """Open every file. Raises DataError with the whole report when no image can be used."""
        count, longest = token_counter(options.model)
        found = scan_images(
            folder,
            min_side=options.min_side,
            trigger=options.trigger,
            prompt_template=options.prompt_template,
            count_tokens=count,
            max_tokens=longest,
        )
        rules = CaptionRules(options.trigger, options.prompt_template, count, longest)
        with ThreadPoolExecutor(2) as pool:
            looks = list(pool.map(self._look, found.used))
        seen = {r.path: look for r, look in zip(found.used, looks, strict=True) if look}
        return Scan(found, rules, findings(found.used, seen, options.height, options.width))

    def _look(self, record: ImageRecord) -> Seen | None:
        status = record.path.stat()
        key = record.path, status.st_mtime_ns, status.st_size
        with self._lock:
            if key in self._seen:
                return self._seen[key]
        try:
            look = examine(record.path)
        except (OSError, ValueError):
            return None
        with self._lock:
            self._seen[key] = look
            while len(self._seen) > 20_000:
                self._seen.popitem(last=False)
        return look

    def thumbnail(self, record: ImageRecord) -> Path:
        """A small WebP of the image in the page's own folder, made once for every content."""
        target = self._thumbs / f"{record.sha256[:32]}.webp"
        if not target.is_file():
            with open_image(record.path) as image:
                image.draft("RGB", (2 * THUMB, 2 * THUMB))
                picture = to_rgb(image)[0]
            picture.thumbnail((THUMB, THUMB))
            staged = target.with_suffix(f".{threading.get_ident()}.tmp")
            picture.save(staged, "WEBP", quality=80)
            staged.replace(target)
        return target


def save_caption(scan: Scan, index: int, text: str) -> Scan:
    """Write the caption of used image ``index``; the scan with what the model now sees, also of the
    other images that share the caption file.
    """
    written = write_caption(scan.used[index].path, text)
    records = [
        _read_again(scan, record)
        if record.status == "used" and find_sidecar(record.path) == written
        else record
        for record in scan.folder.records
    ]
    return replace(scan, folder=replace(scan.folder, records=records))


def _read_again(scan: Scan, record: ImageRecord) -> ImageRecord:
    caption = scan.rules.read(record.path, scan.folder.root)
    kept = [note for note in record.notes if not note.startswith("caption: ") or SHARED in note]
    notes = [*kept, *(f"caption: {problem}" for problem in caption.problems)]
    return replace(record, caption=caption.text, caption_source=caption.source, notes=notes)


def summary(scan: Scan) -> str:
    """Coloured counts in one line."""
    kinds = Counter(finding.kind for finding in scan.found)
    refused, missing = len(scan.folder.refused), len(scan.uncaptioned)
    parts = [
        ("good" if len(scan.used) >= 20 else "warn", f"{len(scan.used)} images used"),
        ("bad" if refused else "quiet", f"{refused} refused"),
        ("warn" if missing else "quiet", f"{missing} without a caption"),
        ("warn" if kinds["copy"] else "quiet", f"{kinds['copy']} duplicates"),
        ("warn" if kinds["small"] else "quiet", f"{kinds['small']} small"),
        ("warn" if kinds["blurred"] else "quiet", f"{kinds['blurred']} blurred"),
    ]
    chips = "".join(f'<span class="chip {colour}">{text}</span>' for colour, text in parts)
    few = (
        ""
        if len(scan.used) >= 20
        else '<p class="quiet">Fewer than 20 images: the LoRA may learn the pictures instead of '
        "their look. More and varied ones help.</p>"
    )
    return f'<div class="chips">{chips}</div>{few}'


def report(scan: Scan) -> str:
    """Every file: what is wrong first, then all of them, folded."""
    root = scan.folder.root
    by_path: dict[Path, list[str]] = {}
    for finding in scan.found:
        by_path.setdefault(finding.path, []).append(finding.text)
    troubled: list[str] = []
    others: list[str] = []
    for record in scan.folder.records:
        said = [*record.notes, *by_path.get(record.path, [])]
        name = record.path.relative_to(root).as_posix()
        text = record.reason if record.status != "used" else "; ".join(said)
        row = _row(record.status, name, text, record.caption)
        (troubled if record.status == "refused" or said else others).append(row)
    notes = "".join(f"<p>{escape(note)}</p>" for note in scan.folder.notes)
    return (
        notes
        + _table("Worth a look", troubled, open_=True)
        + _table("All other files", others, open_=False)
    )


def _row(status: str, name: str, text: str, caption: str) -> str:
    colour = {"used": "good", "refused": "bad"}.get(status, "quiet")
    seen = f"<em>{escape(caption)}</em>" if status == "used" else ""
    return (
        f'<tr><td><span class="chip {colour}">{escape(status)}</span></td>'
        f"<td>{escape(name)}</td><td>{seen}</td><td>{escape(text)}</td></tr>"
    )


def _table(title: str, rows: list[str], open_: bool) -> str:
    if not rows:
        return ""
    more = len(rows) - MOST_ROWS
    left = f'<p class="quiet">... and {more} more.</p>' if more > 0 else ""
    head = "<tr><th></th><th>File</th><th>The model sees</th><th>Note</th></tr>"
    return (
        f"<details {'open' if open_ else ''}><summary>{title} ({len(rows)})</summary>"
        f'<table class="files">{head}{"".join(rows[:MOST_ROWS])}</table>{left}</details>'
    )
