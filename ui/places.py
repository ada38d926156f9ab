"""The folders that the web page may read and write; every path from a visitor is checked here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.catalog import FoundModel, find_models, find_motion_modules
from trainer.mini.words import STYLES, style_folder
from trainer.runs.folder import Run, RunError, slug

LONGEST = 1024
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")


class PlaceError(ValueError):
    """A path or name that is not allowed; the message says what is allowed."""


@dataclass(frozen=True)
class Places:
    """``runs`` is written to; ``roots`` may be read, and captions in them written.

    ``comfyui`` is ComfyUI's folder if it is known, ``pack`` the folder of this program.
    """

    pack: Path
    runs: Path
    roots: tuple[Path, ...]
    comfyui: Path | None = None
    model_folders: tuple[Path, ...] = ()

    def models(self) -> list[FoundModel]:
        """Base models on this machine, looked up again on each call."""
        return find_models(self.comfyui, self.model_folders)

    def motion_modules(self) -> list[tuple[str, str]]:
        """(name, path) of AnimateDiff's motion modules on this machine."""
        found = find_motion_modules(self.comfyui, self.model_folders)
        return [(name, str(path)) for name, path in found]

    @property
    def web(self) -> Path:
        """Folder for the page's own files: uploads, thumbnails, the form."""
        return self.runs / "_web"

    @property
    def uploads(self) -> Path:
        return self.web / "uploads"

    @property
    def configs(self) -> Path:
        return self.web / "configs"

    @property
    def thumbs(self) -> Path:
        return self.web / "thumbs"

    @property
    def loras(self) -> Path | None:
        """ComfyUI's folder of LoRAs; None when ComfyUI was not found."""
        return None if self.comfyui is None else self.comfyui / "models" / "loras"

    @property
    def readable(self) -> tuple[Path, ...]:
        """Every root, resolved; uploads and the example styles are always among them."""
        ours = (self.uploads, style_folder(STYLES[0]).parent)
        models = () if self.comfyui is None else (self.comfyui / "models",)
        every = (*self.roots, *ours, *models, *self.model_folders)
        return tuple(dict.fromkeys(root.resolve() for root in every))

    def make(self) -> None:
        """Create the folders that the page writes to."""
        for folder in (self.runs, self.uploads, self.configs, self.thumbs):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, text: str) -> Path:
        """The real path that ``text`` names, links followed; `PlaceError` outside the roots."""
        path = _plain_path(text, self.pack)
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise PlaceError(f"{_short(text)} is not a path ({error}).") from error
        inside = [real.relative_to(root) for root in self.readable if real.is_relative_to(root)]
        if any(not _is_hidden(path) for path in inside):
            return real
        if inside:
            raise PlaceError(
                f"{_short(text)} is hidden (a part of the path begins with a dot), so "
                "this page does not open it."
            )
        raise PlaceError(
            f"{_short(text)} is outside the folders that this page may use: "
            f"{', '.join(str(root) for root in self.readable)}. Copy the files there, upload them, "
            "or start ui_gradio.py with --root FOLDER."
        )

    def folder(self, text: str) -> Path:
        """`read`, for a folder that exists."""
        found = self.read(text)
        if not found.is_dir():
            what = "is a file, not a folder" if found.exists() else "does not exist"
            raise PlaceError(f"{_short(text)} {what}; check the spelling of the folder.")
        return found

    def write_captions(self, file: Path) -> Path:
        """``file``, when captions may be written beside it: not beside the bundled examples."""
        real = self.read(str(file))
        if real.is_relative_to((self.pack / "trainer").resolve()):
            raise PlaceError(
                "The included example styles cannot be edited. Press 'Make an editable copy' "
                "first, then edit the copy."
            )
        return real

    def run(self, name: str | None) -> Run:
        """The run called ``name``; `PlaceError` for a name that is no run in ``runs``."""
        if not name:
            raise PlaceError("No run is selected; choose one at the top of the page.")
        if not isinstance(name, str) or name != slug(name):
            raise PlaceError(f"{_short(str(name))} is not the name of a run.")
        folder = self.runs / name
        if folder.resolve().parent != self.runs.resolve():
            raise PlaceError(f"{_short(name)} is not the name of a run.")
        try:
            return Run.open(folder)
        except RunError as error:
            raise PlaceError(f"There is no run called {_short(name)}.") from error

    def new_run(self, name: str) -> Path:
        """The folder of a run to be made; any name becomes a safe one."""
        if not name or not name.strip():
            raise PlaceError("Run name: it is empty; enter one, such as my-style.")
        return self.runs / slug(name)

    def free_name(self, name: str) -> str:
        """``name`` as a run name that is not taken: name, name-2, name-3, ..."""
        base = slug(name)
        number, candidate = 1, base
        while (self.runs / candidate).exists():
            number += 1
            candidate = f"{base}-{number}"
        return candidate


def default_roots(pack: Path, given: Sequence[Path], remote: bool) -> tuple[Path, ...]:
    """``--root`` folders; without one the user's home, unless the page is open to a network."""
    if given:
        return tuple(Path(root).expanduser().absolute() for root in given)
    return () if remote else (Path.home(),)


def _plain_path(text: str, base: Path) -> Path:
    """``text`` as a path, relative ones below ``base``; `PlaceError` for what is no plain path."""
    if not isinstance(text, str) or not text.strip():
        raise PlaceError("No folder is set; enter one, or upload images.")
    text = text.strip().strip('"')
    if len(text) > LONGEST or any(ord(letter) < 32 for letter in text):
        raise PlaceError(f"{_short(text)} is not a path.")
    # A share would make Windows send the user's password hash to whoever asks for it.
    if text.startswith(("\\\\", "//")) or _SCHEME.match(text):
        raise PlaceError(f"{_short(text)} is a network address, not a folder on this machine.")
    path = Path(text)
    if text.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError as error:
            raise PlaceError(f"{_short(text)} is not a path ({error}).") from error
    return path if path.is_absolute() else base / path


def _is_hidden(inside: Path) -> bool:
    return any(part.startswith(".") for part in inside.parts)


def _short(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return repr(shown if len(shown) <= 120 else f"{shown[:117]}...")
