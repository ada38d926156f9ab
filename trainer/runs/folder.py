"""One run is one folder: where its files are, how it is created and found."""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..config import (
    TrainConfig,
    anchored,
    load_config,
    refuse_uneven_timesteps,
    save_config,
    with_overrides,
)
from ..files import atomic_write

ENDED = ("stopped", "failed", "interrupted", "finished")
LONGEST_NAME = 200
"""Bytes of a run's name: files are called after it, with a step, a suffix and a temporary ending,
and 255 bytes is what file systems take."""
LONGEST_WINDOWS_PATH = 160
"""Letters of a run's path there; 260 with the files inside."""
_WINDOWS_FORBIDS = re.compile(r'[<>:"|?*\x00-\x1f]')
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
        """Make the folder and write ``config.toml``, with absolute paths.

        Raises `RunError` for a name that some file system refuses, and when the folder holds a
        run already, unless ``resume``; that only replaces the configuration. A run that ended
        before its first step does not count: it starts again. Raises ConfigError for settings that
        no new run may have.
        """
        run = cls(_absolute(path))
        check_name(run.path)
        refuse_uneven_timesteps(config)
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file; choose a folder for the run.")
        if not resume and run._is_used() and not run._ended_without_step():
            raise RunError(
                f"{run.path} already holds a run; continue it with "
                f'`python -m trainer resume "{run.path}"`, or choose another folder.'
            )
        for folder in (run.path, run.samples, run.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for file in (run.state_path, run.events_path, run.stop_path, run.preview_path):
                file.unlink(missing_ok=True)
        config = with_overrides(anchored(config, Path.cwd()), {"run": run.path})
        save_config(config, run.config_path)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run; `RunError` when there is none at ``path``."""
        run = cls(_absolute(path))
        if not run.path.is_dir():
            raise RunError(f"{run.path} does not exist; choose the folder of a run.")
        if not run.config_path.is_file():
            raise RunError(f"{run.path} is not a run: it has no {run.config_path.name}.")
        return run

    def _is_used(self) -> bool:
        files = (self.config_path, self.state_path, self.events_path)
        return any(file.exists() for file in files) or any(self.checkpoints.glob("*"))

    def _ended_without_step(self) -> bool:
        """Whether a process worked on this run and ended before the first step."""
        if any(self.checkpoints.glob("*")) or self.export_path.exists():
            return False
        try:
            status = json.loads(self.state_path.read_text(encoding="utf-8"))["status"]
            events = self.events_path.read_bytes() if self.events_path.exists() else b""
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return status in ENDED and b'"kind": "step"' not in events

    def config(self) -> TrainConfig:
        """The resolved configuration; raises `ConfigError`. Relative paths are taken from the
        run's folder, never from the working directory.
        """
        found = self.config_path.stat() if self.config_path.is_file() else None
        version = found and (found.st_mtime_ns, found.st_size, found.st_ino)
        return _config(self.path, self.config_path, version)

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
        """Cancel the request; a run does this when it starts or resumes, after it has the lock."""
        self.stop_path.unlink(missing_ok=True)


def check_name(path: Path) -> None:
    """Raise `RunError` unless every file of a run at ``path`` can have its name."""
    name = path.name
    size = len(name.encode("utf-8", errors="replace"))
    if size > LONGEST_NAME:
        raise RunError(
            f"The run's name is too long: '{name[:40]}...' has {size} bytes, {LONGEST_NAME} are "
            "allowed, because its files use this name. Choose a shorter one."
        )
    if _WINDOWS_FORBIDS.search(name) or name != name.rstrip(". ") or _RESERVED.fullmatch(name):
        raise RunError(
            f"'{name}' cannot be the name of a run, because its LoRA uses this name and not every "
            f"system allows it for a file. Use '{slug(name)}'."
        )
    if os.name == "nt" and len(str(path)) > LONGEST_WINDOWS_PATH:
        raise RunError(
            f"The path '{path}' has {len(str(path))} letters, but Windows allows "
            f"{LONGEST_WINDOWS_PATH} so that files fit inside; choose a shorter one."
        )


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


@lru_cache(maxsize=64)
def _config(folder: Path, file: Path, version: object) -> TrainConfig:
    """Kept while the ``version`` of ``file`` is the same: the page asks again and again."""
    return with_overrides(anchored(load_config(file), folder), {"run": folder})


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
