"""Chooses names for uploaded files, so that none is lost and images keep their captions.

Names are cleaned for every system, so that different ones may become equal: they are numbered.
Every image gets a stem of its own in its folder, and its caption, wherever that stood, follows it
as ``stem.txt`` or ``stem.caption``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from trainer.data.images import OTHER_IMAGES, SUFFIXES, UNSUPPORTED
from trainer.data.pixels import READABLE, STARTS, content_of_bytes
from trainer.data.sidecars import SUFFIXES as CAPTIONS
from trainer.data.sidecars import TABLES, folded, listed_caption, parse_table
from trainer.files import natural_key
from trainer.runs.folder import slug

IMAGES = SUFFIXES | OTHER_IMAGES | UNSUPPORTED.keys()
"""Also unsupported kinds: the folder's report then lists them."""
_NUMBER_LETTERS = 6


class Readable(Protocol):
    """The part of a binary stream's interface that is used."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, eq=False)
class Arrival:
    """One file that came in.

    ``source`` tells archives apart, ``inside`` is its name there, ``open()`` its content and
    ``limit`` the bytes it may have.
    """

    source: int
    inside: PurePosixPath
    open: Callable[[], AbstractContextManager[Readable]]
    limit: int


@dataclass
class Plan:
    """Where files go (``copies``), captions from tables (``texts``), and remarks.

    ``left_out`` and ``notes`` are lines "name: why". ``images`` counts pictures.
    """

    copies: list[tuple[Arrival, PurePosixPath]] = field(default_factory=list)
    texts: list[tuple[PurePosixPath, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0


@dataclass(frozen=True, eq=False)
class _Picture:
    arrival: Arrival
    suffix: str
    turn: int  # loose files may have equal names: which of them it is


def plan(arrivals: Sequence[Arrival], existing: Path | None = None) -> Plan:
    """Names for ``arrivals`` in a new folder, or in ``existing`` beside what is there."""
    made = Plan()
    ordered = sorted(arrivals, key=lambda each: (each.source, natural_key(Path(each.inside))))
    turns: Counter[tuple[int, str]] = Counter()
    pictures: list[_Picture] = []
    captions: list[tuple[Arrival, int]] = []
    tables: list[Arrival] = []
    for arrival in ordered:
        key = arrival.source, folded(str(arrival.inside))
        kind, suffix = _kind(arrival, made)
        if kind == "image":
            pictures.append(_Picture(arrival, suffix, turns[key]))
        elif kind == "caption":
            captions.append((arrival, turns[key]))
        elif kind == "table":
            tables.append(arrival)
        turns[key] += 1
    owned, orphans = _owners(pictures, captions, made)
    stems = _Stems(existing)
    places = _place_pictures(pictures, owned, stems, made)
    _place_orphans(orphans, stems, made)
    _read_tables(tables, places, stems, made)
    made.images = len(pictures)
    return made


def _kind(arrival: Arrival, made: Plan) -> tuple[str, str]:
    """ "image" with its suffix, "caption", "table", or "" for files that are left out and
    reported.
    """
    name, suffix = arrival.inside.name, arrival.inside.suffix.lower()
    if any(part.startswith(".") or part == "__MACOSX" for part in arrival.inside.parts):
        made.left_out.append(f"{name}: a hidden file")
    elif suffix in IMAGES:
        return "image", suffix
    elif suffix in CAPTIONS:
        return "caption", suffix
    elif name.lower() in TABLES:
        return "table", suffix
    else:
        with arrival.open() as stream:
            what = content_of_bytes(stream.read(STARTS))
        if what in READABLE:
            made.notes.append(f"{name}: its content is {what}, so it was saved as {READABLE[what]}")
            return "image", READABLE[what]
        it_is = f" (it is {what})" if what else ""
        made.left_out.append(f"{name}: not an image or a caption{it_is}")
    return "", ""


def _owners(
    pictures: Sequence[_Picture], captions: Sequence[tuple[Arrival, int]], made: Plan
) -> tuple[dict[_Picture, Arrival], list[Arrival]]:
    """The caption of every picture that has one, and captions of no picture."""
    by_name: dict[tuple[int, str], list[_Picture]] = defaultdict(list)
    for picture in pictures:
        inside = picture.arrival.inside
        for name in {str(inside), str(inside.with_suffix(""))}:
            by_name[picture.arrival.source, folded(name)].append(picture)
    found: dict[_Picture, list[tuple[int, Arrival]]] = defaultdict(list)
    orphans = []
    for caption, turn in captions:
        name = str(caption.inside.with_suffix(""))
        called = by_name[caption.source, folded(name)]
        mine = [picture for picture in called if picture.turn == turn]
        for picture in mine:
            whole = folded(name) == folded(str(picture.arrival.inside))
            rank = 2 * whole + CAPTIONS.index(caption.inside.suffix.lower())
            found[picture].append((rank, caption))
        if len(mine) > 1:
            made.notes.append(
                f"{caption.inside.name}: the caption of {len(mine)} images; each got a copy"
            )
        if called and not mine:
            made.left_out.append(f"{caption.inside.name}: a second caption of that name")
        elif not called:
            orphans.append(caption)
    owned = {}
    for picture, choices in found.items():
        (_, owned[picture]), *others = sorted(choices, key=lambda choice: choice[0])
        made.left_out += (
            f"{other.inside.name}: a second caption of {picture.arrival.inside.name}; "
            f"{owned[picture].inside.name} is used"
            for _, other in others
        )
    return owned, orphans


class _Stems:
    """Stems that are taken in every folder of the set, by its pictures and by its captions."""

    def __init__(self, existing: Path | None) -> None:
        self.pictures: set[tuple[str, str]] = set()
        self.captions: set[tuple[str, str]] = set()
        self._next: Counter[tuple[str, str]] = Counter()
        for path in existing.rglob("*") if existing else ():
            inside = PurePosixPath(path.relative_to(existing or path).as_posix())
            suffix = path.suffix.lower()
            if suffix in CAPTIONS:
                self.captions.add(self.key(inside.parent, inside.stem))
                # `x.png.txt` is the caption of `x.png`
                self.captions.add(self.key(inside.parent, PurePosixPath(inside.stem).stem))
            elif suffix in IMAGES:
                self.pictures.add(self.key(inside.parent, inside.stem))

        self.before = frozenset(self.pictures)

    @staticmethod
    def key(folder: PurePosixPath, stem: str) -> tuple[str, str]:
        return folded(str(folder)), folded(stem)

    def free(self, folder: PurePosixPath, stem: str, captioned: bool) -> str:
        """``stem``, numbered until no picture has it (nor a caption, for a ``captioned`` one)."""
        base = stem
        key = self.key(folder, base)
        number = max(1, self._next[key])
        while True:
            place = self.key(folder, stem)
            if place not in self.pictures and not (captioned and place in self.captions):
                break
            number += 1
            stem = f"{base[: 64 - _NUMBER_LETTERS]}-{number}"
        self._next[key] = number
        return stem


def _place_pictures(
    pictures: Sequence[_Picture], owned: dict[_Picture, Arrival], stems: _Stems, made: Plan
) -> dict[_Picture, PurePosixPath]:
    places = {}
    for picture in pictures:
        inside, caption = picture.arrival.inside, owned.get(picture)
        folder, clean = _clean_folder(inside), _clean(inside.stem)
        stem = stems.free(folder, clean, caption is not None)
        stems.pictures.add(stems.key(folder, stem))
        if stem != clean:
            made.notes.append(
                f"{inside.name}: saved as {stem}{picture.suffix}, because the name was taken"
            )
        places[picture] = folder / f"{stem}{picture.suffix}"
        made.copies.append((picture.arrival, places[picture]))
        if caption is not None:
            stems.captions.add(stems.key(folder, stem))
            suffix = caption.inside.suffix.lower()
            made.copies.append((caption, folder / f"{stem}{suffix}"))
    return places


def _place_orphans(orphans: Sequence[Arrival], stems: _Stems, made: Plan) -> None:
    """Captions that came without their picture: to one that was there and has none, or kept."""
    for caption in orphans:
        inside, folder = caption.inside, _clean_folder(caption.inside)
        stem, whole = _clean(inside.stem), PurePosixPath(inside.stem)
        if whole.suffix.lower() in IMAGES:
            stem = _clean(whole.stem)
        if stems.key(folder, stem) in stems.before:
            if stems.key(folder, stem) in stems.captions:
                made.left_out.append(
                    f"{inside.name}: '{stem}' already has a caption, which was kept"
                )
                continue
        else:
            stem = stems.free(folder, stem, captioned=True)
            made.notes.append(f"{inside.name}: saved, but there is no image of that name yet")
        stems.captions.add(stems.key(folder, stem))
        made.copies.append((caption, folder / f"{stem}{inside.suffix.lower()}"))


def _read_tables(
    tables: Sequence[Arrival],
    places: dict[_Picture, PurePosixPath],
    stems: _Stems,
    made: Plan,
) -> None:
    """Captions of tables become files beside the pictures, whose names may have changed."""
    for table in sorted(tables, key=lambda each: (-len(each.inside.parts), _rank(each))):
        with table.open() as stream:
            captions, damage = parse_table(table.inside.name, stream.read(table.limit))
        folder, count = table.inside.parent, 0
        for picture, place in places.items():
            arrival = picture.arrival
            below = arrival.source == table.source and arrival.inside.is_relative_to(folder)
            key = stems.key(place.parent, place.stem)
            if key in stems.captions or not below:
                continue
            text = listed_caption(captions, arrival.inside.relative_to(folder))
            if text and text.strip():
                stems.captions.add(key)
                made.texts.append((place.with_name(f"{place.stem}.txt"), text.strip()))
                count += 1
        made.notes.append(
            f"{table.inside.name}: {count} captions from it were written beside the images"
        )
        made.left_out += [damage] if damage else []


def _rank(table: Arrival) -> int:
    return TABLES.index(table.inside.name.lower())


def _clean_folder(inside: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(*(_clean(part) for part in inside.parts[:-1]))


def _clean(stem: str) -> str:
    cleaned = slug(stem)
    return cleaned if cleaned != "run" or stem.lower() == "run" else "image"
