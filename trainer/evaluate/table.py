"""The quality table: teacher and student at 1, 2, 4 and 8 steps on the same prompts and seeds."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ..families.base import VideoModel
from ..lora.adapter import apply_lora
from ..lora.formats import LoraFile, read_lora
from ..mini.looks import public_video
from ..sheets import Row
from .distances import RESAMPLES
from .generate import generate_clips
from .networks import Measuring, feature_network, judge_network
from .rows import LEVEL, MEASURES, Observation, References, measure, observe
from .truth import as_frames, as_pixels, bundled_look, draw_prompts, style_pixels, true_clips

TRUE_CLIPS_PER_PROMPT = 4
"""True clips are cheap, and a large reference set lowers the bias of the Frechet distance."""
SEEDS_PER_RUN = 1_000_000
"""Distance of the noise seeds of two evaluation seeds, so that their clips share no noise."""
_DECIMALS = {"style_kid": 4, "flow": 2, "fd_video": 1, "fd_style": 1, "fd_teacher": 1}
_DECIMALS["frame_consistency"] = 3

Progress = Callable[[str, int, int], None]
"""Told ``(what, clips done, clips in all)``."""


@dataclass(frozen=True)
class EvaluationResult:
    """``rows`` and ``meta`` are plain JSON values; ``examples`` are clips to look at.

    A row has "method" ("teacher" or "student"), "steps", "seconds_per_clip" and the measures of
    ``trainer.evaluate.rows`` with their intervals. ``meta["references"]`` holds rows of true
    clips: what a perfect model would get. ``examples`` is one row of labelled uint8 clips a
    prompt.
    """

    rows: list[dict[str, Any]]
    meta: dict[str, Any]
    examples: list[Row] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        """``{"rows": [...], "meta": {...}}``."""
        return {"rows": self.rows, "meta": self.meta}

    def save(self, path: Path) -> None:
        """Write the JSON, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        try:
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def text(self, intervals: bool = False) -> str:
        """An aligned table; measures that no row has are left out."""
        lines = [*self.rows, *self.meta.get("references", [])]
        names = [name for name in MEASURES if any(row.get(name) is not None for row in lines)]
        table = [["method", "steps", *names]]
        table += [[_cell(row, name, intervals) for name in table[0]] for row in lines]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = ["  ".join(_aligned(cells, widths)).rstrip() for cells in table]
        features = self.meta.get("features", {})
        note = f"features: {features.get('name')} sha256 {str(features.get('sha256'))[:12]}"
        return "\n".join([*aligned, f"{note}, {self.meta.get('count')} clips a row"]) + "\n"


def evaluate(
    model: VideoModel,
    *,
    lora: Path | None = None,
    style: Path | None = None,
    steps: Sequence[int] = (1, 2, 4, 8),
    teacher_steps: int = 50,
    count: int = 64,
    seed: int = 0,
    guidance_scale: float = 3.0,
    prompts: Path | None = None,
    features: str = "auto",
    features_path: Path | None = None,
    batch_size: int = 8,
    examples: int = 4,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure the teacher once (DDIM, a CFG scale) and the student at each of ``steps`` (LCM).

    The student is ``model`` with the file ``lora`` merged in for the time of the call; without a
    file it is the model as it stands, a LoRA in training included (that is off for the teacher).
    ``style`` is a folder of images. The mini model uses its own captions, judge and true clips;
    any other needs ``prompts``, a text file, and is measured by the feature network ``features``:
    captions and distances to true clips are then left out.

    Raises ``ValueError`` for too few clips, missing prompts or bad steps, LoraError or DataError
    for a LoRA or folder that cannot be used.
    """
    mini = model.name == "mini"
    if prompts is None and not mini:
        raise ValueError(f"'{model.name}' needs `prompts`: a text file with one prompt a line.")
    if not steps or min(*steps, teacher_steps) < 1:
        raise ValueError(f"`steps`={steps} and `teacher_steps`={teacher_steps} must be 1 or more.")
    network = judge_network() if mini else feature_network(features, model.name, features_path)
    file = None if lora is None else read_lora(lora, model.unet)
    sampling = _sampling(file)
    captions = draw_prompts(count, seed, prompts)
    bench = _Bench(model, network, captions, seed, batch_size, progress, sampling)
    worlds = bench.true_worlds(style) if mini and prompts is None else {}
    bench.add_references(style, worlds)
    rows = [bench.teacher(teacher_steps, guidance_scale)]
    with _merged(model, None if file is None else file.pairs):
        rows += [bench.student(number) for number in steps]
    meta = _meta(bench, steps, teacher_steps, guidance_scale)
    meta["references"] = bench.reference_rows(worlds)
    meta["style"] = None if style is None else {"name": style.name, "images": bench.style_images}
    meta["lora"] = None
    if lora is not None and file is not None:
        meta["lora"] = {"name": lora.name, "sha256": file.hashes.tensors_sha256}
    return EvaluationResult(rows, meta, bench.examples(examples))


@dataclass
class _Bench:
    """The state of one evaluation: what is measured with what, and the clips that were made."""

    model: VideoModel
    network: Measuring
    captions: list[str]
    seed: int
    batch_size: int
    progress: Progress | None
    sampling: dict[str, Any]
    references: References = field(default_factory=References)
    clips: dict[str, np.ndarray] = field(default_factory=dict)
    style_images: int = 0

    def true_worlds(self, style: Path | None) -> dict[str, Any]:
        """Looks whose true clips can be rendered: public video, and the style if it is bundled."""
        look = None if style is None else bundled_look(style)
        return {"public video": public_video, **({} if look is None else {"style video": look})}

    def add_references(self, style: Path | None, worlds: dict[str, Any]) -> None:
        many = self.captions * TRUE_CLIPS_PER_PROMPT
        videos = {
            name: self.network.features(as_pixels(true_clips(many, look, self.seed)))[1]
            for name, look in worlds.items()
        }
        frames = None
        if style is not None:
            images = style_pixels(style, self.model.height, self.model.width)
            self.style_images, frames = len(images), self.network.images(images)
        self.references = References(frames, videos.get("public video"), videos.get("style video"))

    def reference_rows(self, worlds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of fresh true clips: the ceiling of accuracies and the floor of distances."""
        rows = []
        for name, look in worlds.items():
            clips = as_pixels(true_clips(self.captions, look, self.seed + SEEDS_PER_RUN))
            seen = observe(clips, self.captions, self.network)
            measures = measure(seen, self.references, self.seed)
            rows.append({"method": name, "steps": None, **measures})
        return rows

    def teacher(self, steps: int, guidance_scale: float) -> dict[str, Any]:
        row, seen = self._row("teacher", steps, "ddim", guidance_scale)
        self.references = replace(
            self.references, teacher_videos=seen.videos, teacher_flow=seen.flow
        )
        return {**row, "flow_ratio": 1.0, "flow_ratio_ci": [1.0, 1.0]}

    def student(self, steps: int) -> dict[str, Any]:
        return self._row("student", steps, "lcm", 1.0, **self.sampling)[0]

    def _row(
        self, method: str, steps: int, sampler: str, guidance_scale: float, **options: Any
    ) -> tuple[dict[str, Any], Observation]:
        label = f"{method}, {steps} step{'s' if steps > 1 else ''}"
        tell = self.progress
        start = perf_counter()
        clips = generate_clips(
            self.model,
            self.captions,
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=self.seed * SEEDS_PER_RUN,
            batch_size=self.batch_size,
            lora=method == "student",
            progress=None if tell is None else lambda done, total: tell(label, done, total),
            **options,
        )
        seconds = round((perf_counter() - start) / len(clips), 4)
        self.clips[label] = as_frames(clips)
        seen = observe(clips, self.captions, self.network)
        row = {"method": method, "steps": steps, "seconds_per_clip": seconds}
        return {**row, **measure(seen, self.references, self.seed)}, seen

    def examples(self, count: int) -> list[Row]:
        return [
            (caption, [(label, clips[index]) for label, clips in self.clips.items()])
            for index, caption in enumerate(self.captions[:count])
        ]


def _sampling(file: LoraFile | None) -> dict[str, Any]:
    """Sampler options that must be those of the distillation, from the LoRA's own metadata."""
    found = {} if file is None else file.metadata
    kinds: dict[str, Callable[[str], Any]] = {"timestep_scaling": float, "original_steps": int}
    return {k: kind(found[f"mcm.{k}"]) for k, kind in kinds.items() if f"mcm.{k}" in found}


@contextmanager
def _merged(model: VideoModel, pairs: Any) -> Iterator[None]:
    undo = None if pairs is None else apply_lora(model.unet, pairs)
    try:
        yield
    finally:
        if undo is not None:
            undo()


def _meta(
    bench: _Bench, steps: Sequence[int], teacher_steps: int, guidance_scale: float
) -> dict[str, Any]:
    model, network = bench.model, bench.network
    student = {"sampler": "lcm", "steps": list(steps), "guidance_scale": 1.0, **bench.sampling}
    return {
        "model": {"name": model.name, "family": model.family.name, "sha256": model.base_hash},
        "features": {"name": network.name, "sha256": network.hash},
        "count": len(bench.captions),
        "clip": {"frames": model.frames, "height": model.height, "width": model.width},
        "seed": bench.seed,
        "noise_seeds": [bench.seed * SEEDS_PER_RUN, len(bench.captions)],
        "true_clips_per_prompt": TRUE_CLIPS_PER_PROMPT,
        "teacher": {"sampler": "ddim", "steps": teacher_steps, "guidance_scale": guidance_scale},
        "student": student,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "accuracies": "Wilson"},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "device": _device(model),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }


def _device(model: VideoModel) -> str:
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cell(row: dict[str, Any], name: str, intervals: bool) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    places = _DECIMALS.get(name, 2)
    low_high = row.get(f"{name}_ci") if intervals else None
    spread = "" if low_high is None else f" [{low_high[0]:.{places}f}, {low_high[1]:.{places}f}]"
    return f"{value:.{places}f}{spread}"


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    """Method to the left, numbers to the right."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return [cells[0].ljust(widths[0]), *numbers]
