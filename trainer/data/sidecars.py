"""Caption files: which one belongs to an image or video, and its text in any encoding.

`x.png` is described by `x.txt` or `x.caption`, else by `x.png.txt` or `x.png.caption`, in any case
of the suffix and in either Unicode form of the name (macOS stores letters with accents in two
parts); else by an entry of a table as other trainers write them (`TABLES`), in its folder or one
above.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

SUFFIXES = (".txt", ".caption")
TABLES = ("metadata.jsonl", "captions.json", "metadata.json", "meta_cap.json")
"""Hugging Face's imagefolder (one JSON object per line); kohya's and others' JSON by file name."""
MAX_CAPTION_BYTES = 64 * 1024
MAX_TABLE_BYTES = 64 * 2**20
_FILE_FIELDS = ("file_name", "file", "image", "image_path", "path", "filename")
_TEXT_FIELDS = ("text", "caption", "prompt", "tags")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def find_sidecars(path: Path) -> list[Path]:
    """The caption files of the image or video at ``path``, the one that is read first."""
    listed = _listing(path.parent)
    found: list[Path] = []
    for name in (f"{start}{suffix}" for start in (path.stem, path.name) for suffix in SUFFIXES):
        same = listed.get(folded(name), ())
        found += (path.with_name(real) for real in sorted(same, key=lambda n: (n != name, n)))
    return found


def find_sidecar(path: Path) -> Path | None:
    """The caption file of ``path`` that is read, if it has any."""
    return next(iter(find_sidecars(path)), None)


def read_sidecar(sidecar: Path, root: Path) -> tuple[str, str]:
    """The text of a caption file and a remark: how it was read, or why it cannot be (the text is ""
    then).
    """
    if not sidecar.resolve().is_relative_to(root.resolve()):
        return "", f"{sidecar.name} is a link out of this folder; replace it by the caption itself"
    try:
        with sidecar.open("rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return "", f"{sidecar.name} cannot be read ({error.strerror or error})"
    if len(data) > MAX_CAPTION_BYTES:
        return "", f"{sidecar.name} is larger than {MAX_CAPTION_BYTES // 1024} KiB: not a caption"
    text, encoding = decode(data)
    if "\0" in text:
        return "", f"{sidecar.name} is not text (it holds NUL bytes); write the caption again"
    remark = f"{sidecar.name} was read as {encoding}; save it as UTF-8 if letters look wrong"
    return text, "" if encoding == "UTF-8" else remark


def decode(data: bytes) -> tuple[str, str]:
    """The text of ``data`` without byte order marks, and the encoding that it was read as.

    UTF-16 is known by its mark, or by the NUL bytes of its western letters; what is neither that
    nor UTF-8 is Windows-1252, in which every byte means something.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    if not encoding and data.count(0) > len(data) // 4:
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding or "utf-8")
        told = "UTF-16" if "16" in encoding else "UTF-8"
    except UnicodeDecodeError:
        text, told = data.decode("cp1252", errors="replace"), "Windows-1252"
    return text.lstrip("\ufeff"), told


def table_caption(path: Path, root: Path) -> tuple[str | None, str]:
    """The caption of ``path`` in the nearest table from its folder up to ``root`` (None: there is
    none), and a remark on a table that cannot be read.
    """
    remark = ""
    for folder in (path.parent, *path.parent.parents):
        for name in TABLES:
            table = folder / name
            if not table.is_file():
                continue
            if table.is_symlink() and not table.resolve().is_relative_to(root.resolve()):
                remark = remark or f"{name} is a link out of this folder; not read"
                continue
            status = table.stat()
            captions, problem = _table(table, status.st_mtime_ns, status.st_size)
            remark = remark or problem
            caption = listed_caption(captions, path.relative_to(folder))
            if caption is not None:
                return caption, remark
        if folder == root:
            break
    return None, remark


def listed_caption(captions: Mapping[str, str], inside: PurePath) -> str | None:
    """The caption in a table (`parse_table`) of the file that is ``inside`` the table's folder."""
    for key in (inside.as_posix(), inside.with_suffix("").as_posix(), inside.name, inside.stem):
        if folded(key) in captions:
            return captions[folded(key)]
    return None


def folded(name: str) -> str:
    """One spelling for names that look the same, whichever system wrote them."""
    return unicodedata.normalize("NFC", name).casefold()


def _listing(folder: Path) -> Mapping[str, tuple[str, ...]]:
    try:
        return _listed(folder, folder.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(64)
def _listed(folder: Path, _changed: int) -> Mapping[str, tuple[str, ...]]:
    """Names of the caption files in ``folder``, by their folded form."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in folder.iterdir():
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            key = folded(entry.name)
            found[key] = (*found.get(key, ()), entry.name)
    return found


def forget_listings() -> None:
    """Call after writing a caption file: the clock of some disks is too coarse to show the
    change.
    """
    _listed.cache_clear()


@lru_cache(16)
def _table(file: Path, _changed: int, size: int) -> tuple[Mapping[str, str], str]:
    if size > MAX_TABLE_BYTES:
        return {}, f"{file.name} is larger than {MAX_TABLE_BYTES // 2**20} MiB and not read"
    try:
        return parse_table(file.name, file.read_bytes())
    except OSError as error:
        return {}, f"{file.name} cannot be read ({error.strerror or error})"


def parse_table(name: str, data: bytes) -> tuple[Mapping[str, str], str]:
    """Captions by folded file name, path and stem of the table ``name``, and a remark where it is
    damaged.
    """
    found: dict[str, str] = {}
    count = 0
    try:
        for entry, caption in _entries(name, decode(data)[0]):
            inside = PurePosixPath(entry.replace("\\", "/"))
            if not inside.name:
                continue
            count += 1
            for key in (str(inside), str(inside.with_suffix("")), inside.name, inside.stem):
                found.setdefault(folded(key), caption)
    except (ValueError, RecursionError) as error:
        return found, f"{name} is damaged ({error}); {count} captions were read from it"
    return found, ""


def _entries(table: str, text: str) -> Iterator[tuple[str, str]]:
    """(file name, caption) of a table; entries without either are passed over."""
    if table.lower().endswith(".jsonl"):
        rows: Any = (json.loads(line) for line in text.splitlines() if line.strip())
    else:
        rows = json.loads(text)
    if isinstance(rows, Mapping):
        rows = [{"file_name": name, "text": _text(value)} for name, value in rows.items()]
    elif table.lower().endswith(".json") and not isinstance(rows, list):
        raise ValueError("it is neither a list nor captions by file name")
    for row in rows:
        if isinstance(row, Mapping):
            file = next((row[key] for key in _FILE_FIELDS if isinstance(row.get(key), str)), "")
            caption = _text(row)
            if file and caption:
                yield file, caption


def _text(value: Any) -> str:
    """The caption in an entry: words, the first of several, or a field of that name."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _TEXT_FIELDS if value.get(key)), "")
    if isinstance(value, list):
        value = next(iter(value), "")
    return value if isinstance(value, str) else ""
