"""One run is one folder: where its files are, how it is created and found."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainConfig, load_config, save_config
from .files import atomic_write

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class RunError(ValueError):
    """A run folder that cannot be used as asked."""


def slug(name: str, longest: int = 64) -> str:
    """``name`` as a folder name for every system; letters of all scripts stay. Never empty."""
    text = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name))
    text = re.sub(r"-{2,}", "-", text).strip("-._ ")[:longest].rstrip("-._ ")
    if not text:
        return "run"
    return f"run-{text}" if _RESERVED.fullmatch(text) else text


def safe_join(root: Path, *parts: str) -> Path:
    """``root`` and ``parts`` joined and resolved; `RunError` if the result lies outside ``root``.

    Links are followed before the check, so a link that leads out is refused as well.
    """
    base = Path(root).expanduser().resolve()
    try:
        joined = base.joinpath(*parts).resolve()
    except (ValueError, OSError) as error:
        raise RunError(f"{'/'.join(parts)!r} is not a path ({error}).") from error
    if not joined.is_relative_to(base):
        raise RunError(f"{'/'.join(parts)!r} is not allowed; use a path inside {base}.")
    return joined


@dataclass(frozen=True)
class Run:
    """A run folder and the paths in it; get one from `Run.create` or `Run.open`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def state_path(self) -> Path:
        return self.path / "state.json"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stop_path(self) -> Path:
        return self.path / "STOP"

    @property
    def preview_path(self) -> Path:
        return self.path / "PREVIEW"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def export_path(self) -> Path:
        """The exported LoRA, ``<name>.safetensors``."""
        return self.path / f"{self.name}.safetensors"

    @classmethod
    def create(cls, path: Path, config: TrainConfig, resume: bool = False) -> Run:
        """Make the folder and write ``config.toml``.

        Raises `RunError` when the folder holds a run already, unless ``resume``; that only
        replaces the configuration.
        """
        run = cls(_absolute(path))
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file; give a folder for the run.")
        if not resume and run._is_used():
            raise RunError(
                f"{run.path} holds a run already; continue it with "
                f'`python -m trainer resume "{run.path}"`, or choose another folder.'
            )
        for folder in (run.path, run.samples, run.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        save_config(config, run.config_path)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run; `RunError` when there is none at ``path``."""
        run = cls(_absolute(path))
        if not run.path.is_dir():
            raise RunError(f"{run.path} does not exist; give the folder of a run.")
        if not run.config_path.is_file():
            raise RunError(f"{run.path} is not a run: it has no {run.config_path.name}.")
        return run

    def _is_used(self) -> bool:
        files = (self.config_path, self.state_path, self.events_path)
        return any(file.exists() for file in files) or any(self.checkpoints.glob("*"))

    def config(self) -> TrainConfig:
        """The resolved configuration; raises `ConfigError`."""
        return load_config(self.config_path)

    def request_stop(self) -> None:
        """Ask the training process to save, export and end."""
        atomic_write(self.stop_path, b"")

    def request_preview(self) -> None:
        """Ask the training process for a preview after its present step."""
        atomic_write(self.preview_path, b"")

    def take_preview_request(self) -> bool:
        """True once for every request."""
        if not self.preview_path.exists():
            return False
        self.preview_path.unlink(missing_ok=True)
        return True

    def clear_stop(self) -> None:
        """Take the request back; a run that starts or resumes does so after it has the lock."""
        self.stop_path.unlink(missing_ok=True)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


def list_runs(root: Path) -> list[Run]:
    """Runs directly inside ``root``, the most recently changed first; none if it does not exist."""
    base = _absolute(root)
    runs = [Run(entry) for entry in base.iterdir()] if base.is_dir() else []
    return sorted((run for run in runs if run.config_path.is_file()), key=_changed, reverse=True)


def _changed(run: Run) -> tuple[float, str]:
    times = [0.0]
    for file in (run.config_path, run.state_path):
        with contextlib.suppress(FileNotFoundError):
            times.append(file.stat().st_mtime)
    return max(times), run.name
