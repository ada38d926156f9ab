"""Measured rows: clips of a solver or a student, seen once and kept, measured against any style."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_claims import STEPS, STILLS, TEACHER_STEPS
from quality_students import Student
from quality_styles import Style, digest, in_look, public_video
from scipy.stats import t as students_t

from trainer.data.cache import ContentCache
from trainer.evaluate.bench import Bench, merged, sampling_options
from trainer.evaluate.rows import ATTRIBUTES, LEVEL, MEASURES, Observation, References
from trainer.families.base import VideoModel
from trainer.files import atomic_write
from trainer.lora.formats import LoraFile

VERSION = 2
"""Raise it when a measure changes: kept rows and seen clips are then made again."""
DDIM_STEPS = (TEACHER_STEPS, 25, *reversed(STEPS))

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where clips come from: a solver of the teacher, or a student with its LoRAs, which all act at
    strength 1; the first says how it is sampled in few steps.
    """

    method: str
    steps: int
    sampler: str
    guidance_scale: float = 1.0
    student: Student | None = None
    loras: tuple[LoraFile, ...] = ()

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of the sampler."""
        few = self.sampler == "lcm" and self.loras
        return sampling_options(self.loras[0]) if few else {}

    @property
    def label(self) -> str:
        return self.method if self.student is None else self.student.name

    @property
    def key(self) -> str:
        loras = [file.hashes.tensors_sha256 for file in self.loras]
        return digest(self.sampler, self.steps, self.guidance_scale, loras, self.sampling)


def solvers(guidance_scale: float) -> list[Source]:
    """The teacher in fewer and fewer steps, by two solvers, always guided."""
    ddim = [Source("ddim", steps, "ddim", guidance_scale) for steps in DDIM_STEPS]
    return ddim + [Source("dpmpp", steps, "dpmpp", guidance_scale) for steps in STEPS]


def student_sources(
    student: Student, loras: Sequence[LoraFile], guidance_scale: float
) -> list[Source]:
    """The student at each number of steps; a plain style LoRA as the teacher, in all its steps."""
    method, own = student.method, {"student": student, "loras": tuple(loras)}
    if method == STILLS:
        return [Source(method, TEACHER_STEPS, "ddim", guidance_scale, **own)]
    return [Source(method, steps, "lcm", **own) for steps in STEPS]


def merge_all(model: VideoModel, loras: Sequence[LoraFile]) -> ExitStack:
    """A context in which ``model`` has all of ``loras`` in its weights, each at strength 1."""
    with ExitStack() as stack:
        for file in loras:
            stack.enter_context(merged(model, file))
        return stack.pop_all()


@dataclass
class RowMaker:
    """Rows measured with one bench; seen clips and rows are kept in ``work`` by their content."""

    bench: Bench
    work: Path
    model_hash: str
    guidance_scale: float
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher(self) -> Source:
        return Source("ddim", TEACHER_STEPS, "ddim", self.guidance_scale)

    def row(self, source: Source, style: Style | None) -> Row:
        """Who, then every measure with its interval; for the teacher none against itself."""
        student = source.student

        def compute() -> Row:
            seen, seconds = self.seen(source)
            references = self._references(style, teacher=source != self.teacher)
            return {"seconds_per_clip": seconds, **self.bench.measure(seen, references)}

        return {
            "method": source.method,
            "student": None if student is None else student.name,
            "trained_on": None if student is None else student.style,
            "style": None if style is None else style.name,
            "steps": source.steps,
            **self._kept(f"{source.label}-{source.steps}", (source.key,), style, compute),
        }

    def true_row(self, style: Style | None) -> Row:
        """Fresh true clips, what a perfect model would make: public video, or in the style."""
        name = "public video" if style is None else "true video"

        def compute() -> Row:
            return self.bench.measure(self._true(style), self._references(style))

        same: Row = {"method": name, "student": None, "trained_on": None, "steps": None}
        measured = self._kept(name.replace(" ", "-"), ("true",), style, compute)
        return {**same, "style": style and style.name, **measured}

    def _true(self, style: Style | None) -> Observation:
        look, name = (public_video, "public video") if style is None else (style.look, style.name)
        if look is None:
            raise ValueError(f"`style`: nobody can render true videos of '{name}'.")
        watch = self.bench.watch_true
        return self._once(f"{name} true", lambda: watch(name, in_look(look)).seen)

    def seen(self, source: Source) -> tuple[Observation, float]:
        """What the networks see in the clips of ``source``, and the seconds that a clip took."""
        cache = ContentCache(self.work / "seen")
        key = self._key("seen", source.key)
        return self._once(
            key, lambda: _unpacked(cache.fetch(key, lambda: _packed(self._watch(source))))
        )

    def _watch(self, source: Source) -> tuple[Observation, float]:
        told = (source.label, source.steps, source.sampler, source.guidance_scale)
        with merge_all(self.bench.model, source.loras):
            sight = self.bench.watch(*told, **source.sampling)
        return sight.seen, sight.seconds_per_clip or 0.0

    def _references(self, style: Style | None, teacher: bool = True) -> References:
        bench = self.bench
        public = self._once("public", lambda: bench.true_videos(in_look(public_video)))
        found = References(public_videos=public)
        if style is not None:
            look = style.look
            frames = self._once(f"{style.name} frames", lambda: bench.style_frames(style.held_out))
            true = look and self._once(
                f"{style.name} videos", lambda: bench.true_videos(in_look(look))
            )
            flow = look and self._true(style).flow
            found = References(frames, public, true, style_flow=flow)
        return found.with_teacher(self.seen(self.teacher)[0]) if teacher else found

    def _kept(
        self, label: str, parts: tuple[str, ...], style: Style | None, compute: Callable[[], Row]
    ) -> Row:
        """A row's measures from its JSON file, or computed now and written there."""
        world = (None, None) if style is None else (style.hash, style.look)
        key = self._key("row", *parts, self.teacher.key, *world)
        name = label if style is None else f"{label}-{style.name}"
        file = self.work / "rows" / f"{name}-{key[:16]}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        row = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(row, indent=1, allow_nan=False).encode("utf-8"))
        return row

    def _key(self, *parts: object) -> str:
        network, count = self.bench.network.hash, len(self.bench.captions)
        return digest(VERSION, self.model_hash, network, count, self.bench.seed, *parts)

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self.memory:
            self.memory[name] = compute()
        return self.memory[name]


def _packed(watched: tuple[Observation, float]) -> dict[str, torch.Tensor]:
    seen, seconds = watched
    arrays = {"frames": seen.frames, "videos": seen.videos, "flow": seen.flow}
    arrays |= {f"hits.{name}": hits for name, hits in seen.hits.items()}
    optional = {"watermark": seen.watermark, "clipsim": seen.clipsim}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    packed = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return packed | {"seconds": torch.tensor([seconds], dtype=torch.float64)}


def _unpacked(tensors: dict[str, torch.Tensor]) -> tuple[Observation, float]:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    seconds = round(float(arrays.pop("seconds")[0]), 4)
    hits = {k.removeprefix("hits."): arrays.pop(k) for k in list(arrays) if k.startswith("hits.")}
    return Observation(hits=hits, **arrays), seconds


def pooled(rows: Sequence[Row]) -> Row:
    """One row of the same row at several seeds: means, each with an interval over seeds and clips,
    and "<measure>_seeds", the value at each seed.

    Every seed has its own training, prompts and noise, so the seeds' values spread by both. The
    interval is Student's t of them, or, if that is wider, what the clips' own intervals leave of
    the mean: few seeds may agree by chance. A single row comes back as it is.
    """
    first, *others = rows
    if not others:
        return first
    found = {**first, "seconds_per_clip": None}
    if first.get("seconds_per_clip") is not None:
        found["seconds_per_clip"] = round(np.mean([r["seconds_per_clip"] for r in rows]), 4)
    for name in MEASURES:
        if first[name] is not None:
            values = np.array([row[name] for row in rows])
            limits = np.array([row[f"{name}_ci"] for row in rows])
            found[name] = float(values.mean())
            found[f"{name}_ci"] = _interval(values, limits, share=name in ATTRIBUTES)
            found[f"{name}_seeds"] = values.tolist()
    return found


def _interval(values: np.ndarray, limits: np.ndarray, share: bool) -> list[float]:
    """Of the mean of ``values`` (S,) with intervals ``limits`` (S, 2) over clips."""
    count, mean = len(values), values.mean()
    spread = values.std(ddof=1) / count**0.5
    seeds = students_t.ppf(0.5 + LEVEL / 2, count - 1) * spread
    clips = np.sqrt(np.square(limits - values[:, None]).sum(axis=0)) / count
    low, high = mean - max(seeds, clips[0]), mean + max(seeds, clips[1])
    return [max(low, 0.0), min(high, 1.0)] if share else [float(low), float(high)]
