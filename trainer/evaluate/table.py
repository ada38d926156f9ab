"""The quality table: teacher and student at 1, 2, 4 and 8 steps on the same prompts and seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..diffusion.noise import TRAJECTORY_STEPS, check_steps
from ..families.base import VideoModel
from ..lora.formats import LoraFile
from ..sheets import Row
from .bench import (
    SEEDS_PER_RUN,
    TRUE_CLIPS_PER_PROMPT,
    Bench,
    Progress,
    Sight,
    TrueClips,
    fit_student,
    machine,
    merged,
    sampling_options,
)
from .distances import RESAMPLES
from .networks import Measuring, feature_network, judge_network
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
        networks = [self.meta.get("features", {}), *self.meta.get("also_features", [])]
        note = ", ".join(f"{n.get('name')} sha256 {str(n.get('sha256'))[:12]}" for n in networks)
        note = f"features: {note}"
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
    videomae: Path | None = None,
    clip: Path | None = None,
    videos: Path | None = None,
    worlds: Mapping[str, TrueClips] | None = None,
    batch_size: int | None = None,
    examples: int = 4,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure the teacher once (DDIM, a CFG scale) and the student at each of ``steps`` (LCM).

    The student is ``model`` with the file ``lora`` merged in for the time of the call; without a
    file it is the model as it stands, a LoRA in training included (that is off for the teacher).
    ``style`` is a folder of images. ``prompts`` is a text file, by default the one that came with
    the model. A model that brings a judge is measured by it, any other by the feature network
    ``features``: captions are then left out. ``worlds`` gives true clips by name, "public video"
    and "style video"; without them the distances to true clips are left out. ``videomae`` and
    ``clip`` are folders of such networks for the distances of clips and for CLIPSIM, ``videos`` a
    folder of real videos to measure the distance to.

    Raises ``ValueError`` for too few clips, missing prompts or bad steps, LoraError or DataError
    for a LoRA or folder that cannot be used.
    """
    prompts = prompts or model.brought("prompts.txt")
    if prompts is None:
        raise ValueError(f"'{model.name}' needs `prompts`: a text file with one prompt per line.")
    if not steps or min(*steps, teacher_steps) < 1:
        raise ValueError(f"`steps`={steps} and `teacher_steps`={teacher_steps} must be 1 or more.")
    device = model.device
    network = (
        feature_network(features, model.feature_network, features_path, device)
        if model.judge is None
        else judge_network(model.judge, device)
    )
    network = _with_extra(network, videomae, clip)
    file = None if lora is None else fit_student(model, lora)
    captions = draw_prompts(count, seed, prompts)
    for number in steps:  # what a sampler would refuse after the teacher's hours
        check_steps(number, sampling_options(file).get("original_steps", TRAJECTORY_STEPS))
    bench = Bench(model, network, captions, seed, batch_size, progress)
    worlds = worlds or {}
    references, images = _references(bench, style, worlds)
    if videos is not None:
        references = replace(references, public_videos=bench.real_videos(videos))
    teacher = bench.watch("teacher", teacher_steps, "ddim", guidance_scale, lora=False)
    rows = [_row("teacher", teacher_steps, bench, teacher, references)]
    rows[0] |= {"flow_ratio": 1.0, "flow_ratio_ci": [1.0, 1.0]}
    references = references.with_teacher(teacher.seen)
    with merged(model, file) as sampling:
        sights = [bench.watch("student", number, "lcm", **sampling) for number in steps]
    rows += [
        _row("student", number, bench, sight, references)
        for number, sight in zip(steps, sights, strict=True)
    ]
    meta = _meta(bench, steps, teacher_steps, guidance_scale, sampling)
    meta["references"] = [
        _row(name, None, bench, bench.watch_true(name, world), references)
        for name, world in worlds.items()
    ]
    meta["videos"] = None if videos is None else videos.name
    meta["style"] = None if style is None else {"name": style.name, "images": images}
    meta["lora"] = _lora_meta(lora, file)
    return EvaluationResult(rows, meta, _examples(bench, [teacher, *sights], examples))


def _with_extra(network: Measuring, videomae: Path | None, clip: Path | None) -> Measuring:
    """``network`` with those of the user's own for clips and for CLIPSIM."""
    if videomae is not None:
        network = with_videomae(network, videomae)
    return network if clip is None else with_clip(network, clip)


def _lora_meta(path: Path | None, file: LoraFile | None) -> dict[str, Any] | None:
    if path is None or file is None:
        return None
    return {"name": path.name, "sha256": file.hashes.tensors_sha256}


def _references(
    bench: Bench, style: Path | None, worlds: Mapping[str, TrueClips]
) -> tuple[References, int]:
    """What the rows are compared with before the teacher is known, and the style's images."""
    videos = {name: bench.true_videos(world) for name, world in worlds.items()}
    frames = None if style is None else bench.style_frames(style)
    references = References(frames, videos.get("public video"), videos.get("style video"))
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


def _meta(
    bench: Bench,
    steps: Sequence[int],
    teacher_steps: int,
    guidance_scale: float,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    model, network = bench.model, bench.network
    student = {"sampler": "lcm", "steps": list(steps), "guidance_scale": 1.0, **sampling}
    return {
        "model": {"name": model.name, "family": model.family.name, "sha256": model.base_hash},
        "features": {"name": network.name, "sha256": network.hash},
        "also_features": [{"name": name, "sha256": sha256} for name, sha256 in network.also],
        "count": len(bench.captions),
        "clip": {"frames": model.frames, "height": model.height, "width": model.width},
        "seed": bench.seed,
        "noise_seeds": [bench.seed * SEEDS_PER_RUN, len(bench.captions)],
        "true_clips_per_prompt": TRUE_CLIPS_PER_PROMPT,
        "teacher": {"sampler": "ddim", "steps": teacher_steps, "guidance_scale": guidance_scale},
        "student": student,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "accuracies": "Wilson"},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(model),
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
