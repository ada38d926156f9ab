"""The quality table: teacher and student at 1, 2, 4 and 8 steps on the same prompts and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..diffusion.noise import TRAJECTORY_STEPS, check_steps
from ..families.base import VideoModel
from ..files import atomic_write
from ..lora.formats import LoraFile
from ..sheets import Row
from .bench import (
    SEEDS_PER_RUN,
    TRUE_CLIPS_PER_PROMPT,
    Bench,
    Progress,
    Sight,
    Starts,
    TrueClips,
    fit_student,
    machine,
    merged,
    sampling_options,
)
from .distances import RESAMPLES
from .networks import feature_network, judge_network
from .published import with_clip, with_videomae
from .rows import LEVEL, MEASURES, References
from .truth import draw_prompts

_DECIMALS = {"style_kid": 4, "flow": 2, "fd_video": 1, "fd_style": 1, "fd_teacher": 1}
_DECIMALS |= {"frame_consistency": 3}


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
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(path, f"{text}\n".encode())

    def text(self, intervals: bool = False) -> str:
        """An aligned table; measures that no row has are left out."""
        lines = [*self.rows, *self.meta.get("references", [])]
        names = [name for name in MEASURES if any(row.get(name) is not None for row in lines)]
        table = [["method", "steps", *names]]
        table += [[_cell(row, name, intervals) for name in table[0]] for row in lines]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = ["  ".join(_aligned(cells, widths)).rstrip() for cells in table]
        networks = [self.meta.get("features", {}), *self.meta.get("also_features", [])]
        note = ", ".join(f"{n.get('name')} sha256 {str(n.get('sha256'))[:12]}" for n in networks)
        note = f"features: {note}"
        return "\n".join([*aligned, f"{note}, {self.meta.get('count')} clips a row"]) + "\n"


@dataclass(frozen=True)
class Evaluation:
    """What is measured: the student is the model with the file ``lora`` merged in for the time of
    the call; without a file it is the model as it stands, a LoRA in training included (that is off
    for the teacher).

    The teacher runs once (DDIM with ``guidance_scale``, a CFG scale, by default its family's), the
    student at each of ``steps`` (LCM). ``style`` is a folder of images. ``prompts`` is a text file,
    by default the one that came with the model. A model that brings a judge is measured by it, any
    other by the feature network ``features``: captions are then left out. ``worlds`` gives true
    clips by name, "public video" and "style video"; without them the distances to true clips are
    left out.
    ``starts`` are as those of `Bench`, for the captions that `captions_of` gives.
    ``videomae`` and ``clip`` are folders of such networks for the distances of clips and for
    CLIPSIM, ``videos`` a folder of real videos to measure the distance to. ``examples`` clips of
    each method are kept to look at.
    """

    lora: Path | None = None
    style: Path | None = None
    steps: Sequence[int] = (1, 2, 4, 8)
    teacher_steps: int = 50
    count: int = 64
    seed: int = 0
    guidance_scale: float | None = None
    prompts: Path | None = None
    features: str = "auto"
    features_path: Path | None = None
    videomae: Path | None = None
    clip: Path | None = None
    videos: Path | None = None
    worlds: Mapping[str, TrueClips] = field(default_factory=dict)
    batch_size: int | None = None
    examples: int = 4
    starts: Starts = field(default_factory=dict)


def evaluate(
    model: VideoModel, asked: Evaluation, progress: Progress | None = None
) -> EvaluationResult:
    """Measure teacher and student of ``model`` as ``asked``.

    Raises ``ValueError`` for too few clips, missing prompts or bad steps, LoraError or DataError
    for a LoRA or folder that cannot be used.
    """
    bench, file = _prepared(model, asked, progress)
    true = {name: bench.watch_true(name, world) for name, world in asked.worlds.items()}
    references, images = _references(bench, asked, true)
    guidance = _guidance(model, asked)
    teacher = bench.watch("teacher", asked.teacher_steps, "ddim", guidance, lora=False)
    rows = [_row("teacher", asked.teacher_steps, bench, teacher, references)]
    rows[0] |= {"flow_ratio": 1.0, "flow_ratio_ci": [1.0, 1.0]}
    references = references.with_teacher(teacher.seen)
    with merged(model, file) as sampling:
        sights = [bench.watch("student", number, "lcm", **sampling) for number in asked.steps]
    rows += [
        _row("student", number, bench, sight, references)
        for number, sight in zip(asked.steps, sights, strict=True)
    ]
    meta = _meta(bench, asked, sampling)
    meta["references"] = [
        _row(name, None, bench, sight, references) for name, sight in true.items()
    ]
    meta["style"] = None if asked.style is None else {"name": asked.style.name, "images": images}
    if file is not None:
        meta["lora"] = {"name": file.path.name, "sha256": file.hashes.tensors_sha256}
    return EvaluationResult(rows, meta, _examples(bench, [teacher, *sights], asked.examples))


def _guidance(model: VideoModel, asked: Evaluation) -> float:
    own = model.teaching.cfg
    return own if asked.guidance_scale is None else asked.guidance_scale


def _prepared(
    model: VideoModel, asked: Evaluation, progress: Progress | None
) -> tuple[Bench, LoraFile | None]:
    """Everything that can be refused, before the teacher's hours."""
    captions = captions_of(model, asked)
    if not asked.steps or min(*asked.steps, asked.teacher_steps) < 1:
        raise ValueError(
            f"`steps`={asked.steps} and `teacher_steps`={asked.teacher_steps} must be 1 or more."
        )
    network = (
        feature_network(asked.features, model.feature_network, asked.features_path, model.device)
        if model.judge is None
        else judge_network(model.judge, model.device)
    )
    if asked.videomae is not None:
        network = with_videomae(network, asked.videomae)
    if asked.clip is not None:
        network = with_clip(network, asked.clip)
    file = None if asked.lora is None else fit_student(model, asked.lora)
    for number in asked.steps:
        check_steps(number, sampling_options(file).get("original_steps", TRAJECTORY_STEPS))
    made = (asked.seed, asked.batch_size, progress, asked.starts)
    return Bench(model, network, captions, *made), file


def captions_of(model: VideoModel, asked: Evaluation) -> list[str]:
    """What the clips of an evaluation show. Raises ValueError without prompts."""
    prompts = asked.prompts or model.brought("prompts.txt")
    if prompts is None:
        raise ValueError(f"'{model.name}' needs `prompts`: a text file with one prompt per line.")
    return draw_prompts(asked.count, asked.seed, prompts)


def _references(
    bench: Bench, asked: Evaluation, true: Mapping[str, Sight]
) -> tuple[References, int]:
    """What the rows are compared with before the teacher is known, and the style's images."""
    videos = {name: bench.true_videos(world) for name, world in asked.worlds.items()}
    frames = None if asked.style is None else bench.style_frames(asked.style)
    public = videos.get("public video")
    if asked.videos is not None:
        public = bench.real_videos(asked.videos)
    style = true.get("style video")
    flow = None if style is None else style.seen.flow
    references = References(frames, public, videos.get("style video"), style_flow=flow)
    return references, 0 if frames is None else len(frames)


def _row(
    method: str, steps: int | None, bench: Bench, sight: Sight, references: References
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "steps": steps}
    if sight.seconds_per_clip is not None:
        row["seconds_per_clip"] = sight.seconds_per_clip
    return {**row, **bench.measure(sight.seen, references)}


def _examples(bench: Bench, sights: Sequence[Sight], count: int) -> list[Row]:
    return [
        (caption, [(sight.label, sight.clips[index]) for sight in sights])
        for index, caption in enumerate(bench.captions[:count])
    ]


def _meta(bench: Bench, asked: Evaluation, sampling: dict[str, Any]) -> dict[str, Any]:
    model, network = bench.model, bench.network
    student = {"sampler": "lcm", "steps": list(asked.steps), "guidance_scale": 1.0, **sampling}
    teacher = {"sampler": "ddim", "steps": asked.teacher_steps}
    return {
        "model": {"name": model.name, "family": model.family.name, "sha256": model.base_hash},
        "features": {"name": network.name, "sha256": network.hash},
        "also_features": [{"name": name, "sha256": sha256} for name, sha256 in network.also],
        "count": len(bench.captions),
        "clip": {"frames": model.frames, "height": model.height, "width": model.width},
        "seed": bench.seed,
        "noise_seeds": [bench.seed * SEEDS_PER_RUN, len(bench.captions)],
        "true_clips_per_prompt": TRUE_CLIPS_PER_PROMPT,
        "teacher": {**teacher, "guidance_scale": _guidance(model, asked)},
        "student": student,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "accuracies": "Wilson"},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(model),
        "videos": None if asked.videos is None else asked.videos.name,
        "lora": None,
    }


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
