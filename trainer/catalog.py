"""The base models on this machine, with their licence and what is missing.

Only file headers and config files are read, so that a list of hundreds of checkpoints is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adversarial.vision_transformers import is_dinov2
from .cards import BUNDLED_SPEED, Speed
from .families import FAMILIES, Family
from .lora.files import read_header
from .models.about import read_about
from .models.clip_vision import is_clip_vision
from .models.motion_module import is_adapter_folder
from .models.weights import FILE_SUFFIXES, ModelError
from .paths import BUNDLED, MINI

DEPTH = 3
"""Folder levels below a root that are searched, as ``author/model``."""
MOTION_FOLDERS = ("animatediff_models", "motion_modules")
FEATURE_FOLDERS = ("clip_vision", "dinov2")
VAE_FOLDERS = ("vae",)
NO_MOTION = "a motion module (models/animatediff_models), such as mm_sd_v15_v2.ckpt"
_VAE_KEY = "post_quant_conv.weight"


@dataclass(frozen=True)
class FoundModel:
    """A base model: ``model`` is the value of that setting, ``name`` is for people.

    ``missing`` names what has to be copied before it can be trained on; empty when it is whole.
    """

    name: str
    model: str
    licence: str
    missing: tuple[str, ...] = ()
    for_trying_out: str = ""
    """What it can draw, for models that can draw very little; empty for most."""
    needs_motion: bool = False
    """True for an image model, which needs a motion module."""
    speed: Speed | None = None
    """How fast models of its kind train, where that was measured."""
    better_with: tuple[str, ...] = ()
    """What it can do without, and what a training is like then, a sentence or two each."""

    @property
    def ready(self) -> bool:
        return not self.missing

    @property
    def commercial(self) -> bool:
        """False for weights whose licence forbids commercial use."""
        return "-NC-" not in f"-{self.licence}-"


def comfyui_folder(pack: Path, setting: Path | None = None) -> Path | None:
    """ComfyUI's folder: ``setting``, ``COMFYUI_PATH``, or two levels above a pack that lies in
    ``custom_nodes``. None if it was not found. Its folder ``models`` is as good.

    Raises ValueError for a setting without ``models``.
    """
    given = setting or (Path(os.environ["COMFYUI_PATH"]) if "COMFYUI_PATH" in os.environ else None)
    if given is not None:
        folder = Path(given).expanduser().absolute()
        if (folder / "models").is_dir():
            return folder
        if folder.name == "models" and folder.is_dir():
            return folder.parent
        if setting is None:
            return None
        raise ValueError(f"'{folder}' has no folder `models`; give the folder of ComfyUI itself.")
    above = pack.absolute().parent
    if above.name == "custom_nodes" and (above.parent / "models").is_dir():
        return above.parent
    return None


def searched(comfyui: Path | None, folders: Sequence[Path] = ()) -> list[Path]:
    """The places where `find_models` looks, apart from the embedded model's."""
    return [*([] if comfyui is None else [comfyui / "models"]), *folders, _hub_folder()]


def find_models(comfyui: Path | None = None, folders: Sequence[Path] = ()) -> list[FoundModel]:
    """The embedded model, then every diffusers model in ``folders``, in ComfyUI's
    ``models/diffusers`` and in the Hugging Face cache, and each family's single files in
    ``folders`` and in ComfyUI's folder for them.
    """
    models = [] if comfyui is None else [comfyui / "models"]
    roots = [*folders, *(place / "diffusers" for place in models)]
    notes = _notes(MINI, "")
    title = f"{BUNDLED} ({notes['for_trying_out']}, for trying out)"
    found = [FoundModel(title, BUNDLED, speed=BUNDLED_SPEED, **notes)]
    missing = () if find_motion_modules(comfyui, folders) else (NO_MOTION,)
    seen: set[Path] = set()
    for folder, name in [*_diffusers(roots), *_hub()]:
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            found += _described(folder, name, missing)
    shelves = {family.shelf.directory for family in FAMILIES} - {""}
    for root in (*folders, *(place / shelf for place in models for shelf in sorted(shelves))):
        for file in _files(root):
            if family := family_of_file(file):
                found.append(_found(family, file, file.relative_to(root).as_posix(), missing))
    return found


def find_motion_modules(
    comfyui: Path | None = None, folders: Sequence[Path] = ()
) -> list[tuple[str, Path]]:
    """(name, path) of AnimateDiff's motion modules: files and folders of a `MotionAdapter`, in
    ComfyUI's folders and below ``folders`` where those have the names that ComfyUI uses.
    """
    found = []
    for root in _places(comfyui, folders, MOTION_FOLDERS):
        found += [(file.relative_to(root).as_posix(), file) for file in _files(root)
                  if not is_adapter_folder(file.parent)]  # fmt: skip
        children = root.iterdir() if root.is_dir() else ()
        found += [(child.name, child) for child in sorted(children) if is_adapter_folder(child)]
    return found


def find_feature_networks(
    comfyui: Path | None = None, folders: Sequence[Path] = ()
) -> list[tuple[str, Path]]:
    """(name, path) of feature networks for the discriminator: DINOv2 folders, CLIP vision folders
    and files, in ``clip_vision`` and ``dinov2`` below ComfyUI's models and ``folders``.
    """
    found = []
    for root in _places(comfyui, folders, FEATURE_FOLDERS):
        inside = [path for path in _files(root) if not (path.parent / "config.json").is_file()]
        inside += [config.parent for config in sorted(root.rglob("config.json"))]
        found += [(path.relative_to(root).as_posix(), path) for path in inside
                  if is_clip_vision(path) or is_dinov2(path)]  # fmt: skip
    return found


def find_vaes(comfyui: Path | None = None, folders: Sequence[Path] = ()) -> list[tuple[str, Path]]:
    """(name, path) of VAE files of Stable Diffusion 1.5, by their headers, in ``vae`` below
    ComfyUI's models and ``folders``.
    """
    return [
        (file.relative_to(root).as_posix(), file)
        for root in _places(comfyui, folders, VAE_FOLDERS)
        for file in _files(root)
        if _is_sd15_vae(file)
    ]


def find_fitting(
    comfyui: Path | None,
    folders: Sequence[Path],
    names: Sequence[str],
    fits: Callable[[Path], bool],
) -> list[tuple[str, Path]]:
    """(name, path) of the files that ``fits`` takes, in the folders ``names`` below ComfyUI's
    models and ``folders``; those that cannot be read are passed over.
    """
    found = []
    for root in _places(comfyui, folders, names):
        for file in _files(root):
            with suppress(ModelError, OSError):
                if fits(file):
                    found.append((file.relative_to(root).as_posix(), file))
    return found


def _places(comfyui: Path | None, folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    places = [*folders, *([] if comfyui is None else [comfyui / "models"])]
    return [place / name for place in places for name in names]


def _is_sd15_vae(file: Path) -> bool:
    if file.suffix.lower() != ".safetensors":
        return "vae-ft-" in file.name.lower()
    try:
        shape = read_header(file).get(_VAE_KEY, {}).get("shape", [])
    except (OSError, ValueError):
        return False
    return shape[:1] == [4] and "xl" not in file.name.lower()  # SDXL's has the same shapes


def family_of_file(file: Path) -> Family | None:
    """The family that a single weights file is a base model of, by its header."""
    header: dict[str, Any] = {}
    if file.suffix == ".safetensors":
        try:
            header = read_header(file)
        except (OSError, ValueError):
            return None
    return next((family for family in FAMILIES if family.shelf.holds(file, header)), None)


def _files(root: Path) -> list[Path]:
    """Weight files at most `DEPTH` levels below ``root``."""
    patterns = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 1)]
    files = (file for pattern in patterns for file in root.glob(pattern) if file.is_file())
    return sorted(file for file in files if file.suffix.lower() in FILE_SUFFIXES)


def _diffusers(roots: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for root in roots:
        for folder in _search(root, DEPTH):
            inside = folder.relative_to(root).as_posix()
            yield folder, root.name if inside == "." else inside


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if _family(folder):
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
    for folder in sorted(_hub_folder().glob("models--*/snapshots/*")):
        yield folder, folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def _hub_folder() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _described(folder: Path, name: str, motion: tuple[str, ...]) -> list[FoundModel]:
    family = _family(folder)
    return [_found(family, folder, name, motion)] if family else []


def _found(family: Family, path: Path, name: str, motion: tuple[str, ...]) -> FoundModel:
    """``motion`` is what is missing for an image model."""
    shelf = family.shelf
    notes = {"licence": family.licence} if shelf.takes_motion else _notes(path, family.licence)
    missing = motion if shelf.takes_motion else tuple(shelf.lacks(path))
    offers = [family.offers[setting] for setting in shelf.does_without(path)]
    return FoundModel(
        name, str(path), missing=missing, needs_motion=shelf.takes_motion, speed=family.speed,
        better_with=tuple(f"Better with {each.files}. {each.without}" for each in offers), **notes,
    )  # fmt: skip


def _family(folder: Path) -> Family | None:
    for family in FAMILIES:
        try:
            if family.matches(folder):
                return family
        except ModelError:
            continue
    return None


def _notes(folder: Path, licence: str) -> dict[str, Any]:
    """Licence and use of the model in ``folder`` by its own notes, else ``licence`` alone."""
    otherwise = {"licence": licence, "for_trying_out": ""}
    try:
        return read_about(folder, **otherwise)
    except ModelError:
        return otherwise
