"""A student loaded from a checkpoint of its run, to sample, view or export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainConfig, with_overrides
from ..data.prompts import PromptSet
from ..families import VideoModel
from ..lora.adapter import lora_parameters
from ..lora.export import Exported
from ..runs.checkpoints import (
    checkpoint_path,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint,
)
from ..runs.events import EventLog, best_step, read_events
from ..runs.folder import Run, RunError
from ..runs.state import read_state
from .export import export_student
from .loop import make_accelerator
from .plan import fitted
from .preview import Preview, Previewer, preview_prompts
from .session import build_student
from .sources import Sources, open_sources
from .student import ParameterEma


@dataclass
class StoredStudent:
    """Model and averaged adapter after ``step`` steps; its config is the run's."""

    run: Run
    step: int
    config: TrainConfig
    sources: Sources
    ema: ParameterEma

    @property
    def model(self) -> VideoModel:
        return self.sources.model

    @property
    def prompts(self) -> PromptSet:
        return self.sources.prompts


def checkpoint_folder(run: Run, step: int | None = None) -> Path:
    """Folder of the checkpoint after ``step`` steps, or of the newest; `RunError` without one."""
    if step is not None:
        folder = checkpoint_path(run, step)
        if folder.is_dir():
            return folder
    newest = latest_checkpoint(run)
    if newest is None:
        raise RunError(f"{run.name} has no checkpoint yet; train it first, or wait for the next.")
    if step is None:
        return newest
    steps = ", ".join(str(found) for found in checkpoint_steps(run))
    raise RunError(f"{run.name} has no checkpoint of step {step}; it has {steps}.")


def best_checkpoint(run: Run) -> int:
    """Step of the checkpoint with most motion and style in its preview; `RunError` without one."""
    step = best_step(read_events(run.events_path, "preview"), checkpoint_steps(run))
    if step is None:
        raise RunError(
            f"No checkpoint of {run.name} has a preview that measured its style; choose one of the "
            f"steps {', '.join(map(str, checkpoint_steps(run))) or 'none'}."
        )
    return step


def load_student(run: Run, step: int | None = None) -> StoredStudent:
    """The student of a checkpoint, on the run's device. Raises the errors of loading its parts."""
    config = run.config()
    found = load_checkpoint(checkpoint_folder(run, step))
    device = make_accelerator(config).device
    gone = config.images is not None and not config.images.is_dir()
    known = with_overrides(config, {"images": None}) if gone else config
    sources = open_sources(known, device, lambda text: None, lambda *counts: None)
    # The adapter comes from the checkpoint, whatever it began with; its rank may have been raised.
    plain = with_overrides(config, {"hardware.compile": False})
    build_student(plain, sources.model, device, lambda message: None, found.tensors)
    ema = ParameterEma(lora_parameters(sources.model.network), config.optim.ema_decay)
    ema.load_state_dict(found.tensors["ema"])
    return StoredStudent(run, found.step, fitted(config, sources.model), sources, ema)


def export_checkpoint(run: Run, step: int | None = None, out: Path | None = None) -> Exported:
    """Write the LoRA of a checkpoint, ``<name>-step00000500.safetensors`` in the run folder."""
    student = load_student(run, step)
    path = out or run.path / f"{run.name}-step{student.step:08d}.safetensors"
    preview = run.samples / f"step-{student.step:06d}"
    return export_student(run, student, student.step, path, preview)


def exported_step(run: Run) -> int | None:
    """The step of the run's LoRA, the best by its previews; None where none was exported, or its
    checkpoint is gone.
    """
    exported = read_events(run.events_path, "export")
    step = int(exported[-1]["step"]) if exported else None
    return step if step in checkpoint_steps(run) else None


def preview_checkpoint(
    run: Run,
    prompts: list[str],
    seed: int | None = None,
    strengths: Sequence[float] = (),
) -> Preview:
    """Teacher beside student at every number of steps.

    Without ``prompts`` it is the run's own preview of its newest checkpoint; with them it goes to a
    folder ``samples/own-<step>-<number>``, and is of the step that was exported, if one was and is
    still there. With ``strengths`` it is one prompt at each strength of the LoRA, in 4 steps.
    """
    chosen = bool(prompts or strengths)
    student = load_student(run, exported_step(run) if chosen else None)
    folder = run.samples / f"step-{student.step:06d}"
    if chosen:
        taken = len(list(run.samples.glob("own-*")))
        folder = run.samples / f"own-{student.step:06d}-{taken + 1:03d}"
    shown = prompts or preview_prompts(student.config, student.prompts)
    if strengths:
        return Previewer(student, shown[:1], seed).make_strengths(folder, strengths)
    made = Previewer(student, shown, seed).make(folder)
    if not prompts and not read_state(run).live:
        with EventLog(run.events_path) as events:
            events.append("preview", step=student.step, folder=folder.name, **made.event())
    return made
