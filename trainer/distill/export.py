"""From a trained session to the file that people share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..config import TrainConfig
from ..data.images import ImageSet
from ..data.prompts import PromptSet
from ..diffusion.noise import SIGMA_DATA, TIMESTEP_SCALING
from ..lora.adapter import lora_state
from ..lora.export import Exported, export_file
from ..lora.metadata import LoraCard, build_metadata, thumbnail_data_uri
from ..lora.whole import merged, whole_of
from ..lora.workflow import lora_workflow
from ..media import read_clip
from ..runs.folder import Run
from ..words import quoted
from .batch import Session
from .plan import FEW_STEPS, TeacherPlan
from .preview import Sampled, preview_prompts

RECOMMENDED_STEPS = 4
STARTED_FROM = "mcm.started_from"
"""Metadata: the file name of the LoRA that the run started from, whose licence may matter."""


class Exportable(Sampled, Protocol):
    """A student that can be exported: a training session, or one loaded from a checkpoint."""

    @property
    def prompts(self) -> PromptSet: ...


def export_run(run: Run, session: Session, step: int, preview: Path | None) -> Exported:
    """Write ``<run>/<name>.safetensors`` from the averaged adapter, with everything a user needs in
    its header.
    """
    return export_student(run, session, step, run.export_path, preview)


def export_student(
    run: Run, student: Exportable, step: int, path: Path, preview: Path | None
) -> Exported:
    """Write the averaged adapter of ``student`` to ``path``."""
    with student.ema.applied():
        pairs = lora_state(student.model.network)
    whole = whole_of(student.model.network)
    pairs, differences = merged(pairs, {} if whole is None else whole.differences)
    model, config, sources = student.model, student.config, student.sources
    card = LoraCard(
        title=run.name,
        family=model.family.name,
        base_model=model.name,
        base_hash=model.base_hash,
        base_license=model.licence,
        base_file=model.path.name if model.path.is_file() else "",
        companions=model.companions,
        motion_module=model.motion_module,
        trigger=config.trigger,
        steps=RECOMMENDED_STEPS,
        steps_allowed=tuple(steps for steps in FEW_STEPS if model.noise.own_steps(steps)),
        timestep_scaling=TIMESTEP_SCALING,
        sigma_data=SIGMA_DATA,
        original_steps=TeacherPlan.of_model(config, model).places,
        shift=model.noise.config.get("shift"),
        low=model.noise.config.get("low"),
        high=model.noise.config.get("high"),
        part=model.part,
        prediction_type=model.prediction_type,
        frames=sources.frames,
        width=sources.width,
        height=sources.height,
        fps=sources.fps,
        train_steps=step,
        seed=config.seed,
        learning_rate=config.optim.lr,
        tag_frequency={} if sources.images is None else caption_tags(sources.images),
        thumbnail=_thumbnail(preview),
    )
    prompt = ", ".join(filter(None, (config.trigger, preview_prompts(config, student.prompts)[0])))
    workflow = lora_workflow(card, path.name, prompt)
    metadata = build_metadata(card, pairs)
    extra = {"workflow": workflow} if workflow else {}
    if config.start_from not in ("auto", "none"):
        extra[STARTED_FROM] = Path(config.start_from).name
    return export_file(pairs, path, metadata, extra=extra, differences=differences)


def how_to_use(exported: Exported, step: int, run: Run, config: TrainConfig, status: str) -> str:
    """What was exported at the end of a training, where to put it, and how to go on."""
    command = f"python -m trainer resume {quoted(run.path)}"
    goal = "continue the training"
    if status != "stopped":
        goal, minutes = "train further", config.minutes
        more = f"--steps {2 * config.steps}" if minutes is None else f"--minutes {2 * minutes:g}"
        command = f"{command} {more}"
    return (
        f"Exported step {step}: {exported.path} ({exported.counts}, read back and matched). Copy "
        "it into ComfyUI's models/loras, or drop it on ComfyUI's canvas for its workflow. To "
        f"{goal}: `{command}`."
    )


def caption_tags(images: ImageSet) -> dict[str, dict[str, int]]:
    """Caption tags of the style folder, counted as kohya does: by comma."""
    tags = (tag.strip() for record in images.records for tag in record.caption.split(","))
    return {images.folder.root.name: dict(Counter(tag for tag in tags if tag))}


def _thumbnail(preview: Path | None) -> str:
    """The first frame of the preview at the recommended steps; empty without one."""
    clip = None if preview is None else preview / f"prompt-1-steps-{RECOMMENDED_STEPS}.mp4"
    if clip is None or not clip.is_file():
        return ""
    return thumbnail_data_uri(Image.fromarray(read_clip(clip)[0][0]))
