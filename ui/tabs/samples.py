"""Samples: the original in 50 steps beside the student in 1, 2, 4 and 8, over the training."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..reference import reference_images
from ..samples import sample_folders, samples
from ..site import QUIET, Site, reporting, tell
from ..status import notice
from ..watch import Moment, Watch

NEWEST = ("the newest", "")
MOST_PROMPTS = 8
LONGEST_PROMPT = 500
STRENGTHS = (0, 0.5, 0.75, 1)


class SamplesTab:
    """Components of the tab and what its buttons do."""

    def __init__(self, site: Site, watch: Watch) -> None:
        self.site = site
        with gr.Row(equal_height=True):
            self.preview = gr.Dropdown(
                [NEWEST],
                value="",
                label="Preview",
                info="All clips of a row have the same prompt and the same noise.",
                allow_custom_value=True,
                elem_id="preview-choice",
            )
            self.now = gr.Button("Sample now", variant="primary", elem_id="sample-now")
        clips = gr.HTML(elem_id="samples")
        with gr.Accordion("Your own prompts", open=False), gr.Row(equal_height=True):
            self.prompts = gr.Textbox(
                label="Prompts",
                info="One per line. The clips are made with the exported LoRA, or with the newest "
                "checkpoint if there is none.",
                lines=3,
                elem_id="own-prompts",
            )
            self.seed = gr.Number(
                value=0, precision=0, label="Seed", info="The same seed gives the same noise."
            )
            self.own = gr.Button("Make clips", elem_id="make-clips")
            self.strengths = gr.Button("Compare strengths", elem_id="compare-strengths")
        busy = gr.HTML()
        watch.add(self.preview, self._choices)
        watch.add(clips, self._clips)
        watch.add(busy, self._busy)

    def wire(self, run_choice: Any) -> None:
        self.now.click(reporting(self._now), run_choice, None, **QUIET)
        inputs = [run_choice, self.prompts, self.seed]
        self.own.click(reporting(self._own), inputs, None, **QUIET)
        self.strengths.click(reporting(self._strengths), inputs, None, **QUIET)

    def _choices(self, moment: Moment) -> Any:
        return gr.update(choices=[NEWEST, *sample_folders(_run(moment), moment.exported)])

    def _clips(self, moment: Moment) -> str:
        run = _run(moment)
        references = [] if run is None else reference_images(self.site, run)
        return samples(run, moment.preview, references, moment.exported)

    def _busy(self, moment: Moment) -> str:
        task = moment.site.tasks.status("preview")
        if task.running:
            return notice("live", f"Sampling {task.label}", "The clips appear above when done.")
        return notice("bad", "Sampling failed", task.problem) if task.failed else ""

    def _now(self, name: str | None) -> None:
        run = self.site.places.run(name)
        status = self.site.status(name)
        if status is not None and status.status == "running":
            run.request_preview()
            tell("The preview starts after the current training step.")
        else:
            self.site.tasks.start("preview", run.name, ["preview", run.path])
            tell("Sampling the newest checkpoint.")

    def _own(self, name: str | None, text: str | None, seed: float | None) -> None:
        prompts = _prompts(text)
        if not prompts:
            raise ValueError(f"Write 1 to {MOST_PROMPTS} prompts, one per line.")
        self._make(name, prompts, seed, [])

    def _strengths(self, name: str | None, text: str | None, seed: float | None) -> None:
        """The first of the prompts, or of the run's own, at each strength."""
        values = [f"{strength:g}" for strength in STRENGTHS]
        self._make(name, _prompts(text)[:1], seed, ["--strengths", *values])

    def _make(
        self, name: str | None, prompts: list[str], seed: float | None, more: list[str]
    ) -> None:
        run = self.site.places.run(name)
        arguments = ["preview", str(run.path), f"--seed={int(seed or 0)}"]
        # "=" keeps a prompt that begins with a dash from being read as a flag.
        arguments += [*(f"--prompt={prompt}" for prompt in prompts), *more]
        self.site.tasks.start("preview", run.name, arguments)
        tell("Making the clips.")


def _prompts(text: str | None) -> list[str]:
    """The lines of ``text``; raises ValueError for too many or too long ones."""
    prompts = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if len(prompts) > MOST_PROMPTS:
        raise ValueError(f"Write 1 to {MOST_PROMPTS} prompts, one per line.")
    if max(map(len, prompts), default=0) > LONGEST_PROMPT or "\0" in "".join(prompts):
        raise ValueError(f"A prompt may have at most {LONGEST_PROMPT} characters.")
    return prompts


def _run(moment: Moment) -> Any:
    return None if moment.status is None else moment.status.run
