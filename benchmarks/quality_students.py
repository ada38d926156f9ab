"""What the quality table trains: styles cut in two halves, and students of one budget each."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from minimaker.looks import (
    COUNT,
    SIZE,
    STYLES,
    Look,
    public_video,
    random_style,
    write_style_folder,
)
from minimaker.truth import PROMPTS, bundled_look, true_clips
from minimaker.world import FPS
from trainer.config import (
    PRESETS,
    TrainConfig,
    fields,
    load_config,
    to_toml,
    with_overrides,
)
from trainer.data.images import scan_images
from trainer.data.sidecars import find_sidecar
from trainer.evaluate.truth import draw_prompts
from trainer.files import file_sha256
from trainer.media import write_clip
from trainer.mini.words import style_folder
from trainer.runs.folder import Run, slug
from trainer.runs.state import read_state

LONG = 1_000_000  # steps: the time budget ends the run
VIDEOS, VIDEO_SEED = 240, 7001
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-disentangling": {"motion.representation": "raw"},
    "no-mixed": {"trajectory.real_probability": 1.0},
    "no-discriminator": {"adversarial.weight": 0.0},
}
"""The paper's three ideas, each taken out of the recipe."""


@dataclass(frozen=True)
class Style:
    """A style folder in two halves that share no image: every other one is held out.

    ``variants`` are further training folders by name ("uncaptioned", "20-images"), made from the
    training half. ``look`` renders true videos of it; None where only images exist. ``hash`` is of
    the held-out images.
    """

    name: str
    train: Path
    held_out: Path
    hash: str
    look: Look | None = None
    variants: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Student:
    """A line of the table: ``preset`` with ``overrides``, trained on ``images`` of ``style``."""

    name: str
    preset: str = "recipe"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    style: str | None = None
    images: Path | None = None
    videos: Path | None = None
    asked_for: bool = False
    """Trained only where ``--students`` names it."""


def digest(*parts: object) -> str:
    """sha256 in hex over the texts of ``parts``."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8")).hexdigest()


def files_hash(folder: Path, pattern: str = "*") -> str:
    """sha256 over names and bytes of the files below ``folder`` that match ``pattern``."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return digest(*(f"{path.relative_to(folder)} {file_sha256(path)}" for path in files))


def find_style(
    given: str, work: Path, *, uncaptioned: bool = False, images: int | None = None
) -> Style:
    """The style of a bundled name or a folder, cut in two below ``work``.

    Raises DataError or ValueError for a folder that is missing or has fewer than four images.
    """
    source = style_folder(given) if given in STYLES else Path(given)
    return _cut(slug(source.name), source, bundled_look(source), work, uncaptioned, images)


def fresh_style(
    seed: int, work: Path, *, uncaptioned: bool = False, images: int | None = None
) -> Style:
    """A style that nobody has seen, drawn now; its true videos can be rendered."""
    look, name = random_style(np.random.default_rng(seed)), f"fresh-{seed}"
    source = work / "sources" / name
    write_style_folder(source, look, COUNT, SIZE, seed)
    return _cut(name, source, look, work, uncaptioned, images)


def _cut(
    name: str, source: Path, look: Look | None, work: Path, uncaptioned: bool, images: int | None
) -> Style:
    records = scan_images(source, min_side=1).used
    place = {sha: k for k, sha in enumerate(dict.fromkeys(r.sha256 for r in records))}
    if len(place) < 4:
        raise ValueError(f"'{source}' has {len(place)} different images; 4 or more are needed.")
    even = [r.path for r in records if place[r.sha256] % 2 == 0]
    odd = [r.path for r in records if place[r.sha256] % 2 == 1]
    if images is not None and not 0 < images <= len(even):
        raise ValueError(f"`--images`={images}: '{source}' has 1 to {len(even)} to train on.")
    captions = [r.caption for r in records]
    root = work / "styles" / f"{name}-{digest(*place, *captions)[:8]}"
    train, held_out = root / "train", root / "held-out"
    _copy(even, source, train)
    _copy(odd, source, held_out)
    variants: dict[str, Path] = {}
    if uncaptioned:
        variants["uncaptioned"] = _copy(even, source, root / "uncaptioned", captions=False)
    if images is not None:
        key = f"{images}-images"
        variants[key] = _copy(even[:images], source, root / key)
    return Style(name, train, held_out, files_hash(held_out), look, variants)


def _copy(files: Sequence[Path], source: Path, target: Path, captions: bool = True) -> Path:
    root = source.expanduser().absolute()
    for file in files:
        sidecar = find_sidecar(file) if captions else None
        for path in (file, *([] if sidecar is None else [sidecar])):
            place = target / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return target


def public_videos(folder: Path) -> None:
    """Fill ``folder`` with public video of the mini world and captions; does nothing when full."""
    captions = draw_prompts(VIDEOS, VIDEO_SEED, PROMPTS)
    missing = [k for k in range(VIDEOS) if not (folder / f"{k:03d}.txt").is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        clips = true_clips(captions, public_video, VIDEO_SEED)
        for number in missing:
            write_clip(clips[number], folder / f"{number:03d}.webp", FPS)
            (folder / f"{number:03d}.txt").write_text(captions[number] + "\n", encoding="utf-8")


def student_table(styles: Sequence[Style], work: Path, model: str = "mini") -> list[Student]:
    """All students; the ablations and the other motion representations are of the first style."""
    videos = work / "videos"
    table = [
        Student("lcm", "lcm", {"start_from": "auto"}),
        Student("mcm"),
        Student("lcm-videos", "lcm", {"start_from": "auto"}, videos=videos, asked_for=True),
        Student("mcm-videos", videos=videos, asked_for=True),
    ]
    for style in styles:
        table.append(Student(f"mcm-{style.name}", style=style.name, images=style.train))
        table += [
            Student(f"mcm-{style.name}-{variant}", style=style.name, images=folder)
            for variant, folder in style.variants.items()
        ]
    for style in styles[:1]:
        changes = {**ABLATIONS, **_other_representations(model)}
        table += [
            Student(f"mcm-{style.name}-{name}", "recipe", change, style.name, style.train)
            for name, change in changes.items()
        ]
    return table


def _other_representations(model: str) -> dict[str, dict[str, Any]]:
    name = "motion.representation"
    choices = next(record.choices for record in fields() if record.name == name)
    default = load_config(overrides={"model": model}).recipe.motion.representation
    return {choice: {name: choice} for choice in choices if choice not in ("raw", default)}


def select(table: Sequence[Student], patterns: Sequence[str] | None) -> list[Student]:
    """The students whose names match a pattern (``mcm-ink*``); without patterns the usual ones.

    Raises ``ValueError`` for a pattern that matches none.
    """
    if not patterns:
        return [student for student in table if not student.asked_for]
    for pattern in patterns:
        if not any(fnmatchcase(student.name, pattern) for student in table):
            known = ", ".join(student.name for student in table)
            raise ValueError(f"`--students` {pattern!r} matches none; there are {known}.")
    return [s for s in table if any(fnmatchcase(s.name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Budget:
    """What every student gets: ``minutes`` of training steps, or a number of ``steps`` in tests."""

    minutes: float
    steps: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        if self.steps is not None:
            return {"steps": self.steps, "minutes": None}
        return {"steps": LONG, "minutes": self.minutes}


@dataclass(frozen=True)
class Plan:
    """A student's whole configuration and the run folder that belongs to it alone."""

    student: Student
    config: TrainConfig

    def train(self, log: Callable[[str], None]) -> Run:
        """The finished run: as it is, continued where it broke off, or trained now."""
        run, name = Run(self.config.run), self.student.name
        begun = run.config_path.is_file()
        if begun and run.export_path.is_file() and read_state(run).status == "finished":
            return run
        from trainer.distill.loop import train

        if self.student.videos is not None:
            public_videos(self.student.videos)
        log(f"training {name} in {run.path}")
        state = train(run if begun else Run.create(run.path, self.config), None, resume=begun)
        if state.status != "finished":
            raise SystemExit(f"{name}: stopped at step {state.step}; run again to continue.")
        return run


def plan_student(
    student: Student, budget: Budget, shared: Mapping[str, Any], model_hash: str, work: Path
) -> Plan:
    """The plan of ``student``; ``shared`` settings of all students, its preset's and own win.

    The folder's name holds a hash of all that decides the result but the code, so that no stale
    LoRA is taken. Raises ConfigError.
    """
    chosen = {**shared, **PRESETS[student.preset], **student.overrides, **budget.settings}
    config = load_config(preset=student.preset, overrides={**chosen, "preview.every": 0})
    images = None if student.images is None else files_hash(student.images)
    videos = None if student.videos is None else (VIDEOS, VIDEO_SEED)
    key = digest(to_toml(config), model_hash, images, videos)
    path = (work / "runs" / f"{slug(student.name)}-{key[:8]}").absolute()
    data = {"run": path, "images": student.images, "videos": student.videos}
    return Plan(student, with_overrides(config, data))
