"""Export: a checkpoint becomes a LoRA file; look at its header, copy it to ComfyUI, download it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.runs.checkpoints import checkpoint_steps
from trainer.runs.events import best_step

from ..export import copy_to_comfyui, describe, lora_file, lora_files, workflow_file
from ..site import QUIET, SHOWN, Site, heading, reporting, tell
from ..status import notice
from ..watch import Moment, Watch

NEWEST = ("the newest", "")
EMPTY = (
    '<p class="empty">No LoRA yet. One is written when a training ends or is stopped. You can '
    "export a checkpoint at any time.</p>"
)


class ExportTab:
    """Components of the tab and what its buttons do."""

    def __init__(self, site: Site, watch: Watch) -> None:
        self.site = site
        self.file = gr.Dropdown(
            [], label="Exported LoRA", allow_custom_value=True, elem_id="lora-file"
        )
        self.about = gr.HTML(EMPTY, elem_id="lora-about")
        with gr.Row():
            self.lora = gr.DownloadButton("Download LoRA", interactive=False, elem_id="get-lora")
            self.workflow = gr.DownloadButton(
                "Download workflow", interactive=False, elem_id="get-workflow"
            )
        self._comfyui()
        busy = self._another()
        watch.add(self.checkpoint, self._checkpoints)
        watch.add(self.file, self._files)
        watch.add(self.about, lambda moment: self._shown(moment)[0])
        watch.add(self.lora, lambda moment: self._shown(moment)[1])
        watch.add(self.workflow, lambda moment: self._shown(moment)[2])
        watch.add(self.name, lambda moment: self._shown(moment)[3])
        watch.add(busy, self._busy)

    def _another(self) -> Any:
        """To export another state of the training; what shows how that goes."""
        heading("Export another step of the training", level=3)
        with gr.Row(equal_height=True):
            self.checkpoint = gr.Dropdown(
                [NEWEST],
                value="",
                label="Checkpoint",
                info="A saved state of the training. See on the Samples tab which looks best.",
                allow_custom_value=True,
                elem_id="checkpoint",
            )
            self.export = gr.Button("Export this checkpoint", elem_id="export-checkpoint")
        return gr.HTML()

    def _comfyui(self) -> None:
        place = self.site.places.loras
        goes = f"Goes to {place}." if place else "Goes to models/loras in ComfyUI's folder."
        with gr.Row(equal_height=True):
            self.name = gr.Textbox(label="Name in ComfyUI", info=goes, elem_id="comfyui-name")
            self.folder = gr.Textbox(
                label="ComfyUI's folder",
                info="It was not found automatically: enter the folder that contains main.py.",
                visible=place is None,
                elem_id="comfyui-folder",
            )
            self.replace = gr.Checkbox(label="Overwrite existing file")
            self.copy = gr.Button("Copy to ComfyUI", variant="primary", elem_id="copy-comfyui")
        self.copied = gr.HTML()

    def wire(self, run_choice: Any) -> None:
        self.export.click(reporting(self._export), [run_choice, self.checkpoint], None, **QUIET)
        self.copy.click(
            reporting(self._copy),
            [run_choice, self.file, self.name, self.replace, self.folder],
            self.copied,
            **SHOWN,
        )

    def _checkpoints(self, moment: Moment) -> Any:
        if moment.status is None:
            return gr.update(choices=[NEWEST])
        steps = checkpoint_steps(moment.status.run)
        best = best_step([e for e in moment.events if e["kind"] == "preview"], steps)
        labels = {step: f"step {step}" for step in reversed(steps)}
        if best is not None:
            labels[best] += ", the best in movement, style and content"
        if moment.exported in labels:
            labels[moment.exported] += " (exported)"
        return gr.update(choices=[NEWEST, *((label, str(k)) for k, label in labels.items())])

    def _files(self, moment: Moment) -> Any:
        run = None if moment.status is None else moment.status.run
        names = lora_files(run)
        if moment.lora in names:  # as the choice of a run: what is chosen meanwhile stays
            return gr.update(choices=names)
        return gr.update(choices=names, value=next(iter(names), None))

    def _busy(self, moment: Moment) -> str:
        task = moment.site.tasks.status("export")
        if task.running:
            return notice("live", f"Exporting {task.label}", "The file appears above when done.")
        return notice("bad", "The export failed", task.problem) if task.failed else ""

    def _export(self, name: str | None, step: str | None) -> None:
        run = self.site.places.run(name)
        if step and not str(step).isdecimal():
            raise ValueError("Choose a checkpoint from the list.")
        arguments = ["export", str(run.path), *([f"--checkpoint={int(step)}"] if step else [])]
        self.site.tasks.start("export", run.name, arguments)
        tell("The checkpoint is being exported.")

    def _shown(self, moment: Moment) -> tuple[Any, Any, Any, str]:
        """Description, both downloads, and the proposed name; empty without a file."""
        run = None if moment.status is None else moment.status.run
        names = lora_files(run)
        if run is None or not names:
            off = gr.update(value=None, interactive=False)
            return EMPTY, off, off, ""
        path = run.path / (moment.lora if moment.lora in names else names[0])
        text, workflow = _described(path, path.stat().st_mtime_ns)
        on = workflow is not None
        return (
            text,
            gr.update(value=str(path), interactive=True),
            gr.update(value=str(workflow) if on else None, interactive=on),
            path.stem,
        )

    def _copy(
        self, name: str | None, file: str | None, target: str, replace: bool, folder: str
    ) -> str:
        path = lora_file(self.site.places.run(name), file)
        places = self.site.places
        made = copy_to_comfyui(path, target or "", places, bool(replace), folder or "")
        text = f"{made}\nPress R in ComfyUI, then choose it in the node Load MCM LoRA."
        return notice("good", "Copied", text)


@lru_cache(maxsize=32)
def _described(path: Path, changed: int) -> tuple[str, Path | None]:
    """Description and workflow file of a LoRA; read again when it has ``changed``."""
    return describe(path), workflow_file(path)
