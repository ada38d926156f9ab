"""The lower half of the Train tab's front: what is missing, where it may be, the test, and
Start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.config import TrainConfig, to_toml
from trainer.runs.folder import Run

from ..draft import Draft
from ..preflight import is_testing, preflight_panel, preflight_warnings, start_test
from ..readiness import find_label, placed, readiness_panel
from ..site import QUIET, SHOWN, Site, reporting, tell
from ..status import notice
from ..watch import Watch

FINDABLE = (
    "model", "motion_module", "vae", "text_encoder", "tiny_vae", "other_expert",
    "adversarial.features", "images", "videos", "prompts", "start_from",
)  # fmt: skip
"""Settings with a path, which get a field beside the message that something is missing."""

Make = Callable[[Sequence[Any]], tuple[TrainConfig, Path]]
Read = Callable[[Sequence[Any]], Draft]


class CheckPart:
    """Components and what their buttons do; ``make`` and ``read`` turn the form into a config with
    its run folder, and into a draft.
    """

    def __init__(self, site: Site, watch: Watch, make: Make, read: Read) -> None:
        self.site, self.make, self.read = site, make, read
        with gr.Row():
            self.start = gr.Button(
                "Start training", variant="primary", interactive=False, elem_id="start"
            )
            self.test = gr.Button("Test memory and time", elem_id="preflight")
            self.cancel = gr.Button("Stop the test", visible=False, elem_id="stop-preflight")
        self.warnings = gr.HTML()
        self.anyway = gr.Button("Start anyway", visible=False, variant="stop", elem_id="anyway")
        self.tested = gr.HTML(elem_id="tested")
        self.panel = gr.HTML(elem_id="readiness")
        self.places = {setting: self._place(setting, watch) for setting in FINDABLE}
        watch.add(self.panel, lambda _: readiness_panel(site.readings.now()))
        watch.add(self.start, lambda _: self._opened())
        watch.add(self.tested, preflight_panel)
        watch.add(self.cancel, lambda _: gr.update(visible=is_testing(site)))

    def _place(self, setting: str, watch: Watch) -> Any:
        """A field for the path of a missing part; shown only while it is missing."""
        field = gr.Dropdown(
            [],
            value=None,
            label=find_label(setting),
            info="Choose one that was found, or enter the path of the file or folder.",
            allow_custom_value=True,
            visible=False,
            elem_id=f"find-{setting.replace('.', '-').replace('_', '-')}",
        )

        def show(_: Any) -> Any:
            finding = self.site.readings.now().bad.get(setting)
            if finding is None:
                return gr.update(visible=False, value=None)
            return gr.update(visible=True, choices=list(finding.found))

        watch.add(field, show)
        return field

    def _opened(self) -> Any:
        return gr.update(interactive=self.site.readings.now().may_start)

    def wire(self, form: list[Any], fields: dict[str, Any], outputs: list[Any]) -> None:
        """``outputs``: the page's choice of run, its tabs, the run's name."""
        for setting, field in self.places.items():
            field.input(reporting(self._placer(setting)), field, [fields[setting], field], **QUIET)
        self.test.click(reporting(self._test), form, self.warnings, **QUIET)
        self.cancel.click(reporting(self._stop_test), None, None, **SHOWN)
        started = [self.warnings, self.anyway, *outputs]
        for button, sure in ((self.start, False), (self.anyway, True)):
            handler = self._starter(sure)
            button.click(reporting(handler), form, started, **SHOWN)

    def _placer(self, setting: str) -> Callable[[Any], tuple[Any, Any]]:
        def use(text: Any) -> tuple[Any, Any]:
            if not text:
                return gr.skip(), gr.skip()
            value = placed(setting, text, self.site.places)
            self.site.drafts.update({setting: value})
            return gr.update(value=value), gr.update(value=None)

        return use

    def _test(self, *values: Any) -> str:
        config, folder = self.make(values)
        draft = self.read(values)
        self.site.drafts.save(draft)
        self.site.readings.check(config).require()
        start_test(self.site, folder.name, draft.values, to_toml(config))
        return ""

    def _stop_test(self) -> None:
        self.site.tasks.stop("preflight")

    def _starter(self, sure: bool) -> Callable[..., tuple[Any, ...]]:
        return lambda *values: self._start(values, sure)

    def _start(self, values: Sequence[Any], sure: bool) -> tuple[Any, ...]:
        config, folder = self.make(values)
        if folder.exists():
            free = self.site.places.free_name(folder.name)
            raise ValueError(f"Run name: '{folder.name}' is taken; use '{free}', for example.")
        readiness = self.site.readings.check(config).require()
        said = [f"{finding.part}: {finding.text}" for finding in readiness.warnings]
        said += preflight_warnings(self.site)
        if said and not sure:
            shown = notice("warn", "Before you start", "\n".join(said))
            return shown, gr.update(visible=True), gr.skip(), gr.skip(), gr.skip()
        run = Run.create(folder, config)
        self.site.queue.add(run)
        self.site.keeper.wake()
        draft = self.read(values)
        draft.name = self.site.places.free_name(folder.name)
        self.site.drafts.save(draft)
        waiting = len(self.site.queue.jobs()) > 1
        tell(f"'{run.name}' {'waits in the queue' if waiting else 'is starting'}.")
        chosen = gr.update(value=run.name, choices=[r.name for r in self.site.runs()])
        return "", gr.update(visible=False), chosen, gr.update(selected="monitor"), draft.name
