"""Files that lie in ComfyUI's model folders beside a model's own: its text encoder, its VAEs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .weights import ModelError, is_safetensors

TRANSFORMERS = ("diffusion_models", "unet")
"""ComfyUI's folders for files that hold a network alone, the older name last."""


def models_folder(file: Path) -> Path | None:
    """ComfyUI's ``models`` (or another folder laid out as it) that ``file`` lies in."""
    for folder in file.absolute().parents:
        if folder.name in TRANSFORMERS:
            return folder.parent
    return None


def find_beside(file: Path, folders: tuple[str, ...], fits: Callable[[Path], bool]) -> Path | None:
    """The first safetensors file by name, in ``folders`` of the `models_folder` of ``file``, that
    ``fits``; None where there is none. Files that cannot be read are passed over.
    """
    models = models_folder(file)
    if models is None:
        return None
    for folder in folders:
        for found in sorted((models / folder).rglob("*.safetensors")):
            try:
                if found.is_file() and is_safetensors(found) and fits(found):
                    return found
            except (ModelError, OSError):
                continue
    return None
