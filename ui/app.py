"""The page: a sticky header, the tabs, and one timer that updates both."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .site import QUIET, SHOWN, Site, heading, reporting, tell
from .status import header
from .tabs.data import DataTab
from .tabs.export import ExportTab
from .tabs.guide import GuideTab
from .tabs.monitor import monitor_tab
from .tabs.runs import RunsTab
from .tabs.samples import SamplesTab
from .tabs.train import TrainTab
from .watch import Moment, Watch

TITLE = "MCM trainer"
LOOK_SECONDS = 1.5
PAGE: dict[str, Any] = {
    "title": TITLE,
    "analytics_enabled": False,
    "fill_width": True,
    "delete_cache": (3600, 86400),
}


def build(site: Site) -> gr.Blocks:
    """The whole page of ``site``."""
    watch = Watch(site)
    with gr.Blocks(**PAGE) as page:
        gr.HTML(f'<h1 class="spoken">{TITLE}</h1>')
        head = Head(site, watch)
        with gr.Tabs(selected="data") as tabs:
            with gr.Tab("Data", id="data"):
                heading("Data", shown=False)
                data = DataTab(site, watch)
            with gr.Tab("Train", id="train"):
                heading("Train", shown=False)
                train = TrainTab(site, watch, data.fields)
            with gr.Tab("Monitor", id="monitor"):
                heading("Monitor", shown=False)
                monitor_tab(watch)
            with gr.Tab("Samples", id="samples"):
                heading("Samples", shown=False)
                samples = SamplesTab(site, watch)
            with gr.Tab("Export", id="export"):
                heading("Export", shown=False)
                export = ExportTab(site, watch)
            with gr.Tab("Runs", id="runs"):
                heading("Runs", shown=False)
                runs = RunsTab(site, watch)
            with gr.Tab("First style", id="guide") as guide_tab:
                guide = GuideTab(site)
        data.wire(train.fields)
        train.wire(head.choice, tabs)
        samples.wire(head.choice)
        export.wire(head.choice)
        runs.wire(head.choice, tabs, train)
        guide.wire(page, guide_tab, train, tabs)
        head.wire(watch, samples.preview, export.file)
        page.load(head.remembered, head.memory, head.choice, **QUIET)
        page.load(train.fill, None, train.outputs, **QUIET).then(
            data.look, data.options, data.outputs, **SHOWN
        )
    return page


class Head:
    """The header: the selected run, its state, and the Stop and Resume buttons."""

    def __init__(self, site: Site, watch: Watch) -> None:
        self.site = site
        self.seen = gr.State({})
        # Fixed names: else the browser's memory of the choice would be lost at every restart.
        self.memory = gr.BrowserState(None, storage_key="mcm-run", secret="mcm-run")
        with gr.Row(elem_id="head", equal_height=True):
            with gr.Column(scale=5, min_width=360):
                shown = gr.HTML(elem_id="status")
            self.choice = gr.Dropdown(
                [], label="Run", allow_custom_value=True, scale=2, min_width=180, elem_id="run"
            )
            self.stop = gr.Button(
                "Stop & save", variant="stop", scale=1, min_width=150, elem_id="stop"
            )
            self.resume = gr.Button("Resume", scale=1, min_width=100, elem_id="resume")
        watch.add(shown, lambda moment: header(moment.status))
        watch.add(self.choice, self._choices)
        watch.add(self.stop, self._can_stop)
        watch.add(self.resume, self._can_resume)

    def wire(self, watch: Watch, preview: Any, lora: Any) -> None:
        look: dict[str, Any] = {
            "fn": watch.look,
            "inputs": [self.choice, preview, lora, self.seen],
            "outputs": [*watch.components, self.seen],
            **QUIET,
        }
        gr.Timer(LOOK_SECONDS).tick(**look, trigger_mode="once")
        for part in (self.choice, preview, lora):
            part.input(**look)
        self.choice.change(lambda name: name, self.choice, self.memory, **QUIET)
        self.stop.click(reporting(self._stop), self.choice, None, **QUIET)
        self.resume.click(reporting(self._resume), self.choice, None, **QUIET)

    def remembered(self, name: str | None) -> Any:
        """The run that this browser showed last, unless only others are training."""
        return gr.update(value=self.site.first_shown(name))

    def _choices(self, moment: Moment) -> Any:
        """The runs to choose from, and a choice only if the page's own is not among them.

        Reading runs takes time. It must not undo a choice made meanwhile, such as by Start.
        """
        names = [run.name for run in self.site.runs()]
        if moment.name == moment.asked:
            return gr.update(choices=names)
        return gr.update(choices=names, value=moment.name)

    def _can_stop(self, moment: Moment) -> Any:
        return gr.update(interactive=moment.status is not None and moment.status.can_stop)

    def _can_resume(self, moment: Moment) -> Any:
        return gr.update(interactive=moment.status is not None and moment.status.can_resume)

    def _stop(self, name: str | None) -> None:
        run = self.site.places.run(name)
        run.request_stop()
        tell(f"'{run.name}' saves, exports and stops after the current training step.")

    def _resume(self, name: str | None) -> None:
        run = self.site.places.run(name)
        self.site.queue.add(run)
        self.site.keeper.wake()
        tell(f"'{run.name}' continues.")
