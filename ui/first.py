"""First real style: which parts of a real model are on this machine, and where to get the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from trainer.catalog import find_feature_networks, find_models, find_motion_modules
from trainer.models.downloads import FEATURE_NETWORKS, IMAGE_MODELS, MOTION_MODULES, Download

from .places import Places

GUIDE = Path("docs") / "first-style.md"
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Part:
    """A part of a real model: what it is for, paths that were found, what may be downloaded."""

    title: str
    purpose: str
    found: tuple[str, ...]
    downloads: tuple[Download, ...]


def model_parts(places: Places, typed: str = "") -> list[Part]:
    """Image model, motion module and feature network, in this order, looked up again in the known
    ComfyUI or in the one whose folder was ``typed``.

    Raises `PlaceError` for a path that is not a folder, or that the page may not read.
    """
    comfyui = places.comfyui
    if comfyui is None and typed.strip():
        comfyui = places.folder(typed)
    folders = places.model_folders
    models = tuple(each.model for each in find_models(comfyui, folders) if each.needs_motion)
    modules = tuple(str(path) for _, path in find_motion_modules(comfyui, folders))
    networks = tuple(str(path) for _, path in find_feature_networks(comfyui, folders))
    return [
        Part("Stable Diffusion 1.5", "knows what things look like", models, IMAGE_MODELS),
        Part("Motion module", "knows how they move", modules, MOTION_MODULES[:1]),
        Part("DINOv2", "tells your pictures from the model's frames", networks,
             FEATURE_NETWORKS[:1]),
    ]  # fmt: skip


def parts_panel(parts: Sequence[Part], places: Places, typed: str = "") -> str:
    """A row a part: what was found, or what to get and where to put it."""
    looked = places.comfyui or typed.strip()
    where = f"Looked in <code>{escape(str(looked))}</code>." if looked else (
        "ComfyUI was not found automatically. Enter its folder below, or enter the paths of the "
        "files on the <b>Train</b> tab."
    )  # fmt: skip
    rows = "".join(map(_row, parts))
    return f'<div class="first">{rows}<p class="quiet">{where}</p></div>'


def _row(part: Part) -> str:
    if part.found:
        mark, state = "&#10003;", "ok"
        names = escape(Path(part.found[0]).name)
        more = f" and {len(part.found) - 1} more" if len(part.found) > 1 else ""
        text = f"found: <code>{names}</code>{more}"
    else:
        mark, state = "&#8595;", "warn"
        get = part.downloads[0]
        text = (
            f"{part.purpose}. Download <b>{escape(get.name)}</b> ({escape(get.size)}, "
            f"{escape(get.licence)}) from <code>{escape(get.repository)}</code> on Hugging Face "
            f"into <code>ComfyUI/{escape(get.folder)}</code>."
        )
    return (
        f'<div class="finding {state}"><i>{mark}</i><div><b>{escape(part.title)}:</b> {text}</div>'
        "</div>"
    )


def missing_parts(parts: Sequence[Part]) -> str:
    """The names of what was not found, as one phrase; empty when all is there."""
    return " and ".join(part.title for part in parts if not part.found)


def guide_text(pack: Path) -> str:
    """The guide as Markdown without its title and links, which lead to files of the repository."""
    try:
        text = (pack / GUIDE).read_text(encoding="utf-8")
    except OSError:
        return f"The guide `{GUIDE.as_posix()}` is not in this installation."
    return _LINK.sub(r"\1", text.partition("\n")[2].replace("\n## ", "\n### "))
