"""Runs: all of them, the queue, and what can be done with the chosen one."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from trainer.files import remove_folder

from ..site import ASKED, QUIET, SHOWN, Site, heading, reporting, tell
from ..status import RunStatus, chip, run_status
from ..watch import Moment, Watch
from .train import TrainTab

MOST_RUNS = 100
CONFIRM = """name => [name && confirm(
  `Delete "${name}" with its samples, checkpoints and LoRA files? This cannot be undone.`
) ? name : null]"""
EMPTY = (
    '<p class="empty">No run yet. Start one on the <b>Train</b> tab. Runs are listed here, with '
    "their samples, checkpoints and LoRA.</p>"
)


class RunsTab:
    """Components of the tab and what its buttons do."""

    def __init__(self, site: Site, watch: Watch) -> None:
        self.site = site
        watch.add(gr.HTML(elem_id="runs"), self._table)
        chosen = gr.HTML()
        with gr.Row(equal_height=True):
            self.clone = gr.Button("Use these settings again", elem_id="clone")
            self.delete = gr.Button("Delete this run", variant="stop", elem_id="delete")
        heading("Queue", level=3)
        watch.add(gr.HTML(elem_id="queue"), self._queue)
        with gr.Row(equal_height=True):
            self.job = gr.Dropdown(
                [],
                label="Waiting job",
                info="Jobs train one after another, even while this page is closed.",
                allow_custom_value=True,
                elem_id="job",
            )
            self.up = gr.Button("Move up", elem_id="job-up")
            self.remove = gr.Button("Remove from queue", elem_id="job-remove")
        watch.add(chosen, self._chosen)
        watch.add(self.job, self._jobs)

    def wire(self, run_choice: Any, tabs: Any, train: TrainTab) -> None:
        self._train = train
        self.clone.click(
            reporting(self._clone), run_choice, [*train.outputs, train.loaded, tabs], **SHOWN
        )
        self.delete.click(reporting(self._delete), run_choice, run_choice, js=CONFIRM, **ASKED)
        self.up.click(reporting(self._up), self.job, None, **QUIET)
        self.remove.click(reporting(self._remove), self.job, self.job, **QUIET)

    def _table(self, moment: Moment) -> str:
        rows = [_row(run_status(run, self.site.queue)) for run in self.site.runs()[:MOST_RUNS]]
        if not rows:
            return EMPTY
        head = "<tr><th>Run</th><th>Status</th><th>Step</th><th>Changed</th><th>Note</th></tr>"
        body = f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
        return f'<table class="files paged">{body}</table>'

    def _chosen(self, moment: Moment) -> str:
        if moment.name is None:
            return ""
        return (
            f"<p>Selected at the top of the page: <b>{escape(moment.name)}</b>. Resume is up "
            "there, too.</p>"
        )

    def _queue(self, moment: Moment) -> str:
        jobs = self.site.queue.jobs()
        if not jobs:
            return '<p class="empty">The queue is empty. Further trainings wait here.</p>'
        busy = self.site.queue.busy
        rows = []
        for number, job in enumerate(jobs, 1):
            word = "training" if number == 1 and busy else "waiting"
            rows.append(f"<li><b>{escape(job.run)}</b> <span class='quiet'>{word}</span></li>")
        return f"<ol>{''.join(rows)}</ol>"

    def _jobs(self, moment: Moment) -> Any:
        jobs = self.site.queue.jobs()
        waiting = jobs[1:] if self.site.queue.busy else jobs
        choices = [(job.run, job.id) for job in waiting]
        return gr.update(choices=choices, value=choices[0][1] if choices else None)

    def _clone(self, name: str | None) -> list[Any]:
        run = self.site.places.run(name)
        draft, left = self.site.drafts.from_config(run.config(), run.name)
        self.site.drafts.save(draft)
        tell(f"The form now has the settings of '{run.name}'; change what you like and start.")
        note = escape("\n".join(left))
        return [*self._train.show(draft), note, gr.update(selected="train")]

    def _delete(self, name: str | None) -> Any:
        if name is None:  # the visitor said no
            return gr.skip()
        run = self.site.places.run(name)
        if run_status(run, self.site.queue).busy:
            raise ValueError(f"'{run.name}' is training or waiting; stop it first.")
        for kind in ("preview", "export"):
            task = self.site.tasks.status(kind)
            if task.running and task.label == run.name:
                raise ValueError(f"A {kind} of '{run.name}' is being made; wait until it is done.")
        if run.path.is_symlink():
            raise ValueError(f"'{run.name}' is a link; delete it by hand.")
        remove_folder(run.path)
        tell(f"'{run.name}' was deleted.")
        names = [other.name for other in self.site.runs()]
        return gr.update(choices=names, value=names[0] if names else None)

    def _up(self, job: str | None) -> None:
        self.site.queue.move_up(str(job or ""))

    def _remove(self, job: str | None) -> Any:
        jobs = self.site.queue.jobs()
        if jobs and jobs[0].id == job and self.site.queue.busy:
            raise ValueError("This run is training; press Stop & save at the top.")
        self.site.queue.remove(str(job or ""))
        return None


def _row(status: RunStatus) -> str:
    state = status.state
    changed = status.run.config_path.stat().st_mtime if state.updated is None else state.updated
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
    lora = "LoRA exported" if status.run.export_path.is_file() else ""
    step = f"step {state.step:,} of {state.steps:,}" if state.steps else ""
    return (
        f"<tr><td><b>{escape(status.run.name)}</b></td><td>{chip(status)}</td><td>{step}</td>"
        f"<td>{when}</td><td>{lora}</td></tr>"
    )
