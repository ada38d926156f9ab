"""Text-to-video models on this machine: their names for a list, and the folders of these names."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from ...trainer.paths import BUNDLED, TINY_ALONE, bundled

UNET_CLASS = "UNet3DConditionModel"
WAN_CLASS = "WanTransformer3DModel"
DEPTH = 3
"""Folder levels below ``models/diffusers`` that are searched, e.g. ``author/model``."""


def list_models() -> list[str]:
    """The bundled model, then each diffusers text-to-video folder below its root, with ``/``.

    Reads config files only: the node list is built from it at every refresh.
    """
    names = {name for root in _roots() for name in _search(root, root, DEPTH)}
    return [BUNDLED, *sorted(names - {BUNDLED}, key=str.casefold)]


def resolve_model_name(name: str) -> Path:
    """The folder that ``name`` of `list_models` means.

    Raises ValueError for an unknown name, or one outside the model folders.
    """
    ours = bundled(name)
    if ours is not None:
        return ours
    parts = PurePosixPath(name.replace("\\", "/"))
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise ValueError(f"`model_name`={name!r} is not a name inside models/diffusers.")
    for root in _roots():
        folder = root.joinpath(*parts.parts)
        if is_video_model(folder):
            return folder
    raise ValueError(
        f"`model_name`={name!r} was not found. Put the diffusers folder (unet, vae, text_encoder, "
        "tokenizer, scheduler) into models/diffusers and press R. "
        f"Found: {', '.join(list_models())}."
    )


def is_video_model(folder: Path) -> bool:
    """Whether ``folder`` is a diffusers text-to-video model that this pack loads, by the class of
    its network.
    """
    return _class_of(folder / "unet") == UNET_CLASS or is_small_wan(folder)


def is_small_wan(folder: Path) -> bool:
    """Whether ``folder`` is a small Wan: a transformer whose only VAE is a tiny one."""
    alone = (folder / TINY_ALONE).is_file() and not (folder / "vae").is_dir()
    return alone and _class_of(folder / "transformer") == WAN_CLASS


def _class_of(part: Path) -> str:
    """The class of the network in the folder ``part`` of a diffusers model; empty without one."""
    try:
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("_class_name", "")) if isinstance(config, dict) else ""


def _roots() -> list[Path]:
    import folder_paths

    return [Path(path) for path in folder_paths.get_folder_paths("diffusers")]


def _search(folder: Path, root: Path, depth: int) -> list[str]:
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
    found = []
    for child in children:
        if is_video_model(child):
            found.append(child.relative_to(root).as_posix())
        elif depth > 1:
            found += _search(child, root, depth - 1)
    return found
