"""Model files that a graph needs, in the form that ComfyUI's frontend expects
(``properties.models``).

The frontend lists an entry as missing where its ``name`` is the value of a widget that does not
offer it, under its ``directory``, and offers a download where the ``url`` is a file of Hugging Face
or Civitai. An entry without a URL fails the frontend's check of the whole graph, so an unpublished
file gets the address of ComfyUI's page on model folders, which is not a download.
"""

from __future__ import annotations

import re

from .metadata import LoraCard

HUB = "https://huggingface.co"
NOT_PUBLISHED = "https://docs.comfy.org/development/core-concepts/models"
CHECKPOINTS, LORAS, FOLDERS = "checkpoints", "loras", "diffusers"
"""Folders inside ComfyUI's ``models``."""

IN_MODEL = "/unet/diffusion_pytorch_model.fp16.safetensors"
IN_ADAPTER = "/diffusion_pytorch_model.safetensors"


Entry = dict[str, str]
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")


def published(name: str) -> str | None:
    """Where on Hugging Face the file or folder ``name`` of a base model lies."""
    from ..families import FAMILIES  # diffusers: only where a graph is written

    return next((f.published[name] for f in FAMILIES if name in f.published), None)


def needed_files(name: str, directory: str) -> list[Entry]:
    """The entry for the file ``name`` in ComfyUI's ``models/<directory>``; none for a folder."""
    if not name.lower().endswith(SUFFIXES):
        return []
    place = published(name.replace("\\", "/").rsplit("/", 1)[-1])
    url = f"{HUB}/{place}/{name.rsplit('/', 1)[-1]}" if place else NOT_PUBLISHED
    return [{"name": name, "url": url, "directory": directory}]


def needed_folder(name: str, directory: str = FOLDERS) -> list[Entry]:
    """The entry for the diffusers folder ``name``, of a whole model or of a motion adapter.

    It names a file inside, because the frontend cannot see whether a folder exists and would always
    ask for it. `web/js/mcm_missing.js` says that it is missing, the note in the graph where to get
    it.
    """
    place = published(name)
    url = f"{HUB}/{place}" if place else NOT_PUBLISHED
    inside = IN_MODEL if directory == FOLDERS else IN_ADAPTER
    return [{"name": name + inside, "url": url, "directory": directory}]


def note_text(card: LoraCard, file_name: str, base_files: list[Entry], more: str = "") -> str:
    """Markdown for the graph of a LoRA: what it is, where its files go, and ``more``."""
    lines = [f"## {_plain(card.title)}", ""]
    if card.trigger:
        lines += [f"Trigger word for the prompt: {_bold(card.trigger)}", ""]
    lines += [
        "Files in ComfyUI's **models** folder:",
        "",
        f"* {_bold(f'{LORAS}/{file_name}')} (this file)",
    ]
    for entry in base_files:
        lines.append(f"* {_bold(entry['directory'] + '/' + _shown(entry))}{_where(entry)}")
    if not base_files:
        lines.append(f"* the base model {_bold(card.base_model)} is included in this pack")
    if base_files and card.base_hash:
        lines += ["", f"SHA-256 of the base model's weights: {card.base_hash[:10]}..."]
    if base_files and card.base_license:
        lines += ["", f"Licence of the base model: {card.base_license}"]
    if more:
        lines += ["", more]
    return "\n".join([*lines, "", "Then press **R** and **Run**."])


def _bold(text: str) -> str:
    """Markdown for a name. Not code: Nodes 2.0 draws code in blue on the note's brown, which is
    unreadable.
    """
    return f"**{_plain(text)}**"


def _plain(text: str) -> str:
    """Markdown that shows ``text`` unchanged, with any special characters escaped."""
    return re.sub(r"([\\`*\[\]<>])", r"\\\1", " ".join(text.split()))


def _shown(entry: Entry) -> str:
    return entry["name"].removesuffix(IN_MODEL).removesuffix(IN_ADAPTER)


def _where(entry: Entry) -> str:
    return "" if entry["url"] == NOT_PUBLISHED else f", [from here]({entry['url']})"
