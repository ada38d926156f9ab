"""Which base models lie on this machine, under which licence, and what is missing of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .families import FAMILIES, Family
from .families.modelscope import PARTS
from .paths import MINI

DEPTH = 3
"""Folder levels below a root that are searched, as ``author/model``."""
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class FoundModel:
    """A base model: ``model`` is the value of that setting, ``name`` is for people.

    ``missing`` names what has to be copied before it can be trained on; empty when it is whole.
    """

    name: str
    model: str
    family: str
    licence: str
    missing: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.missing

    @property
    def commercial(self) -> bool:
        """False for weights whose licence forbids commercial use."""
        return "-NC-" not in f"-{self.licence}-"


def comfyui_folder(pack: Path, setting: Path | None = None) -> Path | None:
    """ComfyUI's folder: ``setting``, ``COMFYUI_PATH``, or two levels above a pack that lies in
    ``custom_nodes``. None when there is none.

    Raises ValueError for a setting without ``models``.
    """
    given = setting or (Path(os.environ["COMFYUI_PATH"]) if "COMFYUI_PATH" in os.environ else None)
    if given is not None:
        folder = Path(given).expanduser().absolute()
        if (folder / "models").is_dir():
            return folder
        if setting is None:
            return None
        raise ValueError(f"'{folder}' has no folder `models`; give the folder of ComfyUI itself.")
    above = pack.absolute().parent
    if above.name == "custom_nodes" and (above.parent / "models").is_dir():
        return above.parent
    return None


def find_models(comfyui: Path | None = None, folders: Sequence[Path] = ()) -> list[FoundModel]:
    """The embedded model, then every diffusers video model in ``folders``, in ComfyUI's
    ``models/diffusers`` and in the Hugging Face cache. Only headers and config files are read.
    """
    roots = [*folders]
    if comfyui is not None:
        roots.append(comfyui / "models" / "diffusers")
    found = [FoundModel("mini (comes with the trainer)", "mini", "mini", _licence(MINI, ""))]
    seen: set[Path] = set()
    for folder, name in [*_diffusers(roots), *_hub()]:
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            found += _described(folder, name)
    return found


def _diffusers(roots: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for root in roots:
        for folder in _search(root, DEPTH):
            inside = folder.relative_to(root).as_posix()
            yield folder, root.name if inside == "." else inside


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "unet" / "config.json").is_file():
        yield folder
        return
    if depth == 0:
        return
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return
    for child in children:
        yield from _search(child, depth - 1)


def _hub() -> Iterator[tuple[Path, str]]:
    """Snapshots in the cache of the ``hf`` command, newest first of each model."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    for config in sorted(hub.glob("models--*/snapshots/*/unet/config.json")):
        folder = config.parent.parent
        yield folder, folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def _described(folder: Path, name: str) -> list[FoundModel]:
    family = _family(folder)
    if family is None:
        return []
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    for part in ("unet", "vae", "text_encoder"):
        files = (folder / part).glob("*") if (folder / part).is_dir() else ()
        if part not in missing and not any(file.suffix in _WEIGHTS for file in files):
            missing.append(f"the weights in {part}")
    licence = _licence(folder, family.licence)
    return [FoundModel(name, str(folder), family.title, licence, tuple(missing))]


def _family(folder: Path) -> Family | None:
    for family in FAMILIES:
        try:
            if family.matches(folder):
                return family
        except ValueError:
            continue
    return None


def _licence(folder: Path, otherwise: str) -> str:
    try:
        about = json.loads((folder / "mcm.json").read_text(encoding="utf-8"))
        return str(about.get("licence", otherwise))
    except (OSError, ValueError, AttributeError):
        return otherwise
