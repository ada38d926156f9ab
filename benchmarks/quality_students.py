"""What the quality table trains: students of one budget each, and what artists train today."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quality_claims import ARTISTS, ON_STUDENT, STILLS
from quality_styles import VIDEO_SEED, VIDEOS, Style, digest, files_hash, public_videos
from stills_lora import STEPS_TAKEN, train_stills

from trainer.config import (
    PRESETS,
    TrainConfig,
    fields,
    load_config,
    to_toml,
    with_overrides,
)
from trainer.lora.files import read_metadata
from trainer.runs.folder import Run, slug
from trainer.runs.state import read_state

LONG = 1_000_000  # steps: the time budget ends the run
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-disentangling": {"motion.representation": "raw"},
    "no-mixed": {"trajectory.real_probability": 1.0},
    "no-discriminator": {"adversarial.weight": 0.0},
}
"""The paper's three ideas, each taken out of the recipe."""


@dataclass(frozen=True)
class Student:
    """A line of the table: ``preset`` with ``overrides``, trained on ``images`` of ``style``.

    ``method`` is "mcm", "lcm" or one of `ARTISTS`; those take the preset's settings of optimizer,
    LoRA and batch alone.
    """

    name: str
    preset: str = "recipe"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    style: str | None = None
    images: Path | None = None
    videos: Path | None = None
    method: str = "mcm"
    asked_for: bool = False
    """Trained only where ``--students`` names it."""


def student_table(styles: Sequence[Style], work: Path, model: str = "mini") -> list[Student]:
    """All students; the ablations and the other motion representations are of the first style that
    is not a drawn one. Where all are drawn, the student without a style is not among the usual.
    """
    videos, named = work / "videos", [style for style in styles if not style.drawn]
    lcm: dict[str, Any] = {"preset": "lcm", "overrides": {"start_from": "auto"}, "method": "lcm"}
    table = [
        Student("lcm", **lcm),
        Student("mcm", asked_for=bool(styles) and not named),
        Student("lcm-videos", **lcm, videos=videos, asked_for=True),
        Student("mcm-videos", videos=videos, asked_for=True),
    ]
    for style in styles:
        own: dict[str, Any] = {"style": style.name, "images": style.train}
        table.append(Student(f"mcm-{style.name}", **own))
        table += [
            Student(f"mcm-{style.name}-{variant}", style=style.name, images=folder)
            for variant, folder in style.variants.items()
        ]
        table += [Student(f"{method}-{style.name}", **own, method=method) for method in ARTISTS]
    for style in named[:1]:
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
class Trained:
    """What training left: ``loras`` that act together, each at strength 1, a step LoRA first; the
    ``steps`` that the student's own took, with ``batch`` clips or stills each, and its folder.
    """

    loras: tuple[Path, ...]
    steps: int
    batch: int
    run: str


@dataclass(frozen=True)
class Plan:
    """A student's whole configuration and the run folder that belongs to it alone."""

    student: Student
    config: TrainConfig

    def train(self, log: Callable[[str], None]) -> Trained:
        """The finished run: as it is, continued where it broke off, or trained now."""
        run = Run(self.config.run)
        begun = run.config_path.is_file()
        if not (begun and run.export_path.is_file() and read_state(run).status == "finished"):
            self._run(run, begun, log)
        return Trained((run.export_path,), read_state(run).step, batch_of(self.config), run.name)

    def _run(self, run: Run, begun: bool, log: Callable[[str], None]) -> None:
        from trainer.distill.loop import train

        name = self.student.name
        if self.student.videos is not None:
            public_videos(self.student.videos)
        log(f"training {name} in {run.path}")
        state = train(run if begun else Run.create(run.path, self.config), None, resume=begun)
        if state.status != "finished":
            raise SystemExit(f"{name}: stopped at step {state.step}; run again to continue.")


@dataclass(frozen=True)
class StillsPlan:
    """A plain style LoRA, and the few-step student ``lcm`` that acts with it, if any: beside it, or
    with ``below`` already while it trains.
    """

    student: Student
    config: TrainConfig
    lcm: Plan | None = None
    below: bool = False

    def train(self, log: Callable[[str], None]) -> Trained:
        """The LoRAs; those that are there are taken as they are. One that broke off begins anew."""
        few = () if self.lcm is None else self.lcm.train(log).loras
        file = self.config.run / "stills.safetensors"
        if not file.is_file():
            log(f"training {self.student.name} in {self.config.run}")
            train_stills(self.config, file, few if self.below else ())
        steps = int(read_metadata(file)[STEPS_TAKEN])
        return Trained((*few, file), steps, batch_of(self.config), self.config.run.name)


def batch_of(config: TrainConfig) -> int:
    """Clips, or stills, of a training step."""
    return config.data.batch_size * config.optim.accumulation


def plan_student(
    student: Student,
    budget: Budget,
    shared: Mapping[str, Any],
    model_hash: str,
    work: Path,
    lcm: Plan | None = None,
) -> Plan | StillsPlan:
    """The plan of ``student``; ``shared`` settings of all students, its preset's and own win.

    ``lcm`` is that of the few-step student, which two of `ARTISTS` need. The folder's name holds a
    hash of all that decides the result but the code, so that no stale LoRA is taken. Raises
    ConfigError.
    """
    chosen = {**shared, **PRESETS[student.preset], **student.overrides, **budget.settings}
    config = load_config(preset=student.preset, overrides={**chosen, "preview.every": 0})
    images = None if student.images is None else files_hash(student.images)
    videos = None if student.videos is None else (VIDEOS, VIDEO_SEED)
    name, kind = student.name, []
    if student.method in ARTISTS:
        below = student.method == ON_STUDENT
        name = f"{ON_STUDENT if below else STILLS}-{student.style}"  # the stacked one is the plain
        kind = ["stills", lcm.config.run.name if below and lcm else None]
    key = digest(to_toml(config), model_hash, images, videos, *kind)
    path = (work / "runs" / f"{slug(name)}-{key[:8]}").absolute()
    data = {"run": path, "images": student.images, "videos": student.videos}
    config = with_overrides(config, data)
    if student.method not in ARTISTS:
        return Plan(student, config)
    return StillsPlan(student, config, None if student.method == STILLS else lcm, below)


def plan_all(
    students: Sequence[Student],
    table: Sequence[Student],
    budget: Budget,
    shared: Mapping[str, Any],
    model_hash: str,
    work: Path,
) -> list[Plan | StillsPlan]:
    """The plans of ``students``, with the few-step student of ``table`` for those that need it."""
    known = (budget, shared, model_hash, work)
    lcm = plan_student(next(s for s in table if s.name == "lcm"), *known)
    assert isinstance(lcm, Plan)
    return [plan_student(student, *known, lcm=lcm) for student in students]
