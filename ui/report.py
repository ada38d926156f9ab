"""The report of a scanned folder: counts, and a paged table of all files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path

from trainer.data.images import ImageRecord
from trainer.words import has_word

from .data import Scan
from .uploads import Received

ROWS = 50
"""Files on a page of the report."""
LONG = 140
"""Letters of a caption before it is folded."""
FEW = 20
REMARKS, UNUSED, BARE, ALL = "Files with remarks", "Not used", "Without a caption", "All files"
VIEWS = (REMARKS, UNUSED, BARE, ALL)


def summary(scan: Scan) -> str:
    """Coloured counts in one line."""
    kinds = Counter(finding.kind for finding in scan.found)
    refused, missing, untold = len(scan.folder.refused), len(scan.uncaptioned), _without(scan)
    used = len(scan.used)
    parts = [
        ("good" if used >= FEW else "warn", f"{used} images used"),
        ("bad" if refused else "quiet", f"{refused} refused"),
        ("warn" if missing else "quiet", f"{missing} without a caption"),
        *([("warn", f"{untold} captions without the trigger word")] if untold else []),
        *(
            ("warn", f"{kinds[kind]} {word}")
            for kind, word in (("copy", "duplicates"), ("small", "small"), ("blurred", "blurred"))
            if kinds[kind]
        ),
    ]
    chips = "".join(f'<span class="chip {colour}">{text}</span>' for colour, text in parts)
    few = (
        ""
        if used >= FEW
        else f'<p class="quiet">Fewer than {FEW} images: the LoRA may learn the pictures '
        "themselves instead of their look. Add more, and more varied, images.</p>"
    )
    return f'<div class="chips">{chips}</div>{few}'


def _without(scan: Scan) -> int:
    """Captions of their own that name the trigger word nowhere, as a word."""
    word = scan.rules.trigger
    return sum(r.captioned and not has_word(r.caption, word) for r in scan.used) if word else 0


def report(scan: Scan, view: str = REMARKS, page: int = 0) -> str:
    """One page of the files of a view."""
    said = remarks(scan)
    shown = _VIEWS.get(view, _VIEWS[REMARKS])
    records = [record for record in scan.folder.records if shown(record, said)]
    pages = page_count(scan, view)
    page = min(max(page, 0), pages - 1)
    rows = [_row(scan, record, said) for record in records[page * ROWS : (page + 1) * ROWS]]
    notes = "".join(f"<p>{escape(note)}</p>" for note in scan.folder.notes)
    if not rows:
        return f'{notes}<p class="empty">{view}: none.</p>'
    first = page * ROWS + 1
    place = f"{first} to {first + len(rows) - 1} of {len(records)} files"
    part = f" (page {page + 1} of {pages})" if pages > 1 else ""
    return f'{notes}<p class="quiet">{place}{part}</p>{_table(rows)}'


def page_count(scan: Scan, view: str) -> int:
    """Pages of a view, at least 1."""
    said, shown = remarks(scan), _VIEWS.get(view, _VIEWS[REMARKS])
    return max(1, -(-sum(shown(record, said) for record in scan.folder.records) // ROWS))


def remarks(scan: Scan) -> dict[Path, list[str]]:
    """Remarks on files, as sentences."""
    said: dict[Path, list[str]] = {}
    for record in scan.folder.records:
        own = [record.reason] if record.status != "used" else record.notes
        said[record.path] = list(own)
    for finding in scan.found:
        said[finding.path].append(finding.text)
    return said


def arrived(received: Received) -> str:
    """What came in, what was left out and what got another name."""
    captions = received.files - received.images
    head = (
        f"{received.images} image{'s' * (received.images != 1)} and {captions} "
        f"caption{'s' * (captions != 1)} received in '{escape(received.folder.name)}'"
    )
    left, notes = received.left_out, received.notes
    return (
        f'<div class="notice {"warn" if left else "good"}"><b>{head}</b>'
        f"{_lines('left out', left, open_=True)}{_lines('with a remark', notes, open_=False)}</div>"
    )


def _lines(title: str, lines: list[str], open_: bool) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f"<details {'open' if open_ and len(lines) <= 8 else ''}><summary>{len(lines)} {title}"
        f'</summary><ul class="lines">{items}</ul></details>'
    )


_PLAIN = ("not an image", "hidden file", "hidden folder")
_Shown = Callable[[ImageRecord, dict[Path, list[str]]], bool]
_VIEWS: dict[str, _Shown] = {
    REMARKS: lambda record, said: bool(said[record.path]) and record.reason not in _PLAIN,
    UNUSED: lambda record, said: record.status != "used",
    BARE: lambda record, said: record.status == "used" and not record.captioned,
    ALL: lambda record, said: True,
}


def _row(scan: Scan, record: ImageRecord, said: dict[Path, list[str]]) -> str:
    colour = {"used": "good", "refused": "bad"}.get(record.status, "quiet")
    name = record.path.relative_to(scan.folder.root).as_posix()
    seen = caption_cell(record.caption) if record.status == "used" else ""
    return (
        f'<tr><td><span class="chip {colour}">{escape(record.status)}</span></td>'
        f'<td>{escape(name)}</td><td data-head="The model reads">{seen}</td>'
        f"<td>{escape('; '.join(said[record.path]))}</td></tr>"
    )


def caption_cell(caption: str) -> str:
    """The caption, its end folded when it is long."""
    if not caption:
        return '<span class="quiet">(nothing)</span>'
    if len(caption) <= LONG:
        return f"<em>{escape(caption)}</em>"
    cut = caption.rfind(" ", LONG // 2, LONG)
    cut = LONG if cut < 0 else cut
    return (
        f"<details><summary><em>{escape(caption[:cut])} ...</em></summary>"
        f"<em>{escape(caption[cut:])}</em></details>"
    )


def _table(rows: list[str]) -> str:
    head = (
        '<colgroup><col class="status"><col class="file"><col class="caption"><col></colgroup>'
        "<thead><tr><th>Status</th><th>File</th><th>The model reads</th><th>Remark</th></tr>"
        "</thead>"
    )
    return f'<table class="files paged">{head}<tbody>{"".join(rows)}</tbody></table>'
