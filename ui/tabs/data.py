"""Data: the folder of style images, its captions, and a report of every file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.data.captioner import find_captioners
from trainer.mini.words import STYLES, style_folder
from trainer.paths import BUNDLED
from trainer.settings.base import colour

from ..data import Scan, ScanOptions, told_anew
from ..form import component, label
from ..report import REMARKS, VIEWS, arrived, page_count, report, summary
from ..site import ASKED, EXPECTED, QUIET, SHOWN, Site, reporting, tell
from ..status import notice
from ..uploads import copy_folder, delete_set, receive
from ..watch import Moment, Watch
from .captions import Captions

NOTHING = '<p class="empty">Choose a folder or drop images, then press <b>Check folder</b>.</p>'
SCANNED = (
    "images", "trigger", "prompt_template", "data.min_side", "data.height", "data.width", "model",
    "data.background",
)  # fmt: skip
"""Fields that decide what a scan sees, in the order of `DataTab.look`."""
NEW, ADD = "new", "add"
SURE = """(...given) => {
  const name = String(given[0]).split(/[\\\\/]/).filter(Boolean).pop();
  given[given.length - 1] = confirm(`Delete the whole set "${name}" with its captions?`);
  return given;
}"""

PRESS_CHECK = "() => { document.querySelector('#check-folder').click(); }"
"""All ways to another folder go through one event: the folder given last is the one that is shown,
whatever is given while another one is being read.
"""


class DataTab:
    """Components of the tab and what their buttons do."""

    def __init__(self, site: Site, watch: Watch) -> None:
        self.site = site
        self.fields: dict[str, Any] = {}
        self.scan = gr.State(None)
        self.report_page = gr.State(0)
        self.sure = gr.Checkbox(visible=False)
        self._source()
        self._arrivals()
        self.summary = gr.HTML(NOTHING)
        self.captions = Captions(site, self.scan)
        self._captioner(watch)
        self._report()

    def _source(self) -> None:
        with gr.Row(equal_height=True):
            with gr.Column(scale=3, min_width=280):
                self.fields["images"] = component("images")
            self.folders = gr.Dropdown(
                choices=self.known_folders(),
                label="Examples and earlier uploads",
                info="Included example styles, and sets you uploaded here.",
                allow_custom_value=True,
                value=None,
                scale=2,
                elem_id="known-folders",
            )
            self.check = gr.Button(
                "Check folder", variant="primary", elem_id="check-folder", min_width=200
            )
        with gr.Row(equal_height=True):
            self.fields["trigger"] = component("trigger")
            self.fields["prompt_template"] = component("prompt_template")
            self.fields["data.background"] = gr.ColorPicker(
                label=label("data.background"),
                info="For images with transparent parts.",
                elem_id="field-data-background",
            )

    def _arrivals(self) -> None:
        with gr.Row(equal_height=True, elem_id="arrivals"):
            self.upload = gr.File(
                label="Drop images, captions or a zip here",
                file_count="multiple",
                height=150,
                scale=3,
                elem_id="upload-images",
            )
            with gr.Column(scale=1, min_width=300):
                self.into = gr.Radio(
                    [("Make a new set", NEW), ("Add to the open set", ADD)],
                    value=NEW,
                    label="Uploads",
                    elem_id="upload-into",
                )
                with gr.Row(elem_classes="pair"):
                    self.copy = gr.Button(
                        "Make an editable copy", size="sm", min_width=165, elem_id="copy-folder"
                    )
                    self.delete = gr.Button(
                        "Delete set", size="sm", min_width=90, elem_id="delete-set"
                    )
        self.arrived = gr.HTML(elem_id="arrived")

    def _captioner(self, watch: Watch) -> None:
        found = [str(path) for path in find_captioners(self.site.places.model_folders)]
        with gr.Accordion("Captions by a captioning model", open=False):
            gr.HTML(
                "<p class='quiet'>A captioning model (BLIP, BLIP-2 or GIT, as a transformers "
                "folder) writes captions for images that have none. It must be on this machine: "
                "nothing is downloaded. Check what it wrote; captioning models are often wrong.</p>"
            )
            with gr.Row(equal_height=True):
                self.captioner = gr.Dropdown(
                    found,
                    value=found[0] if found else None,
                    label="Folder of the captioning model",
                    info="Choose one found on this machine, or enter a folder."
                    if found
                    else "None was found in the Hugging Face cache; enter a folder.",
                    allow_custom_value=True,
                    elem_id="captioner",
                )
                self.autocaption = gr.Button("Write missing captions", elem_id="autocaption")
            self.captioning = gr.HTML()
        watch.add(self.captioning, self._captioning)

    def _report(self) -> None:
        with gr.Row(equal_height=True, elem_classes="pair"):
            self.view = gr.Radio(
                list(VIEWS),
                value=REMARKS,
                label="Report",
                scale=3,
                min_width=320,
                elem_id="report-view",
            )
            self.back = gr.Button("Previous files", size="sm", min_width=110)
            self.forth = gr.Button("Next files", size="sm", min_width=110, elem_id="next-files")
        self.report = gr.HTML(elem_id="report")

    def known_folders(self) -> list[tuple[str, str]]:
        """Example styles and uploads, as (title, path)."""
        examples = [(f"example: {name}", str(style_folder(name))) for name in STYLES]
        uploads = self.site.places.uploads
        entries = sorted(uploads.iterdir()) if uploads.is_dir() else []
        own = [
            (f"uploaded: {entry.name}", str(entry))
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        ]
        return own + examples

    def wire(self, form: Mapping[str, Any]) -> None:
        """Connect the buttons; ``form`` holds the fields of all tabs."""
        told = [self.summary, self.view, self.report_page, self.report]
        self.options = [*(form[name] for name in SCANNED), self.captions.unsaved]
        self.outputs = [self.scan, *told, *self.captions.shown]
        images = self.fields["images"]
        gr.on(
            [self.check.click, images.submit],
            self.look, self.options, self.outputs, trigger_mode="always_last", **SHOWN,
        )  # fmt: skip
        ask: dict[str, Any] = {"fn": None, "js": PRESS_CHECK, **QUIET}
        picked = self.folders.input(lambda name: name or gr.skip(), self.folders, images, **QUIET)
        picked.then(**ask)
        self._wire_sets(ask)
        again = [self.scan, *self.options, self.captions.chosen]
        for part in (self.fields["trigger"], self.fields["prompt_template"]):
            for happening in (part.submit, part.blur):
                happening(reporting(self._tell_anew), again, self.outputs, **QUIET)
        self.view.input(self._see, [self.scan, self.view], [self.report_page, self.report], **QUIET)
        for button, step in ((self.back, -1), (self.forth, 1)):
            button.click(
                lambda scan, view, page, step=step: self._see(scan, view, page + step),
                [self.scan, self.view, self.report_page], [self.report_page, self.report], **QUIET,
            )  # fmt: skip
        self.captions.wire(told)
        self.autocaption.click(
            reporting(self._autocaption), [images, self.captioner], None, **QUIET
        )

    def _wire_sets(self, ask: dict[str, Any]) -> None:
        images = self.fields["images"]
        sets = [images, self.folders, self.arrived]
        uploaded = self.upload.upload(
            reporting(self._upload), [self.upload, self.into, images], sets, **SHOWN
        )
        uploaded.success(**ask)
        uploaded.then(lambda: None, None, self.upload, **QUIET)
        copied = self.copy.click(reporting(self._copy), images, sets, **SHOWN)
        copied.success(**ask)
        deleted = self.delete.click(
            reporting(self._delete), [images, self.sure], sets, js=SURE, **ASKED
        )
        deleted.success(**ask)

    def look(self, images: str, *given: Any) -> list[Any]:
        """Scan the folder; for a folder that cannot be used, show a message instead of pictures."""
        *rest, kept = given
        try:
            folder = self.site.places.folder(images)
            scan = self.site.scans.scan(folder, _options(*rest))
        except EXPECTED as error:
            first, _, rest_of_it = str(error).partition("\n\n")
            details = f"<details><summary>Every file</summary>{notice('quiet', '', rest_of_it)}"
            said = notice("bad", "This folder cannot be used", first)
            more = f"{details}</details>" if rest_of_it else ""
            return [None, said, REMARKS, 0, more, *self.captions.show(None, None, kept)]
        self.site.drafts.update({"images": str(folder)})
        shown = self.captions.show(scan, None, kept)
        return [scan, summary(scan), REMARKS, 0, report(scan), *shown]

    def _tell_anew(self, scan: Scan | None, images: str, *given: Any) -> list[Any]:
        """What the model reads under another trigger word or template; images stay closed."""
        *rest, kept, index = given
        if scan is None:
            return [gr.skip()] * len(self.outputs)
        rules = _options(*rest).rules()
        if (rules.trigger, rules.prompt_template) == (
            scan.rules.trigger, scan.rules.prompt_template,
        ):  # fmt: skip
            return [gr.skip()] * len(self.outputs)
        scan = told_anew(scan, rules)
        shown = self.captions.show(scan, index, kept)
        if index is not None:  # somebody may still be typing
            shown[self.captions.shown.index(self.captions.caption)] = gr.skip()
        return [scan, summary(scan), REMARKS, 0, report(scan), *shown]

    def _see(self, scan: Scan | None, view: str, page: int = 0) -> tuple[int, Any]:
        if scan is None:
            return 0, gr.skip()
        page = min(max(page, 0), page_count(scan, view) - 1)
        return page, report(scan, view, page)

    def _upload(self, files: list[str] | None, into: str, images: str) -> tuple[str, Any, str]:
        paths = [Path(file) for file in files or []]
        uploads = self.site.places.uploads
        name = paths[0].stem if len(paths) == 1 else "my-images"
        target = self.site.places.folder(images) if into == ADD else None
        received = receive(paths, name, uploads, target)
        choices = gr.update(choices=self.known_folders())
        return str(received.folder), choices, arrived(received)

    def _copy(self, images: str) -> tuple[str, Any, str]:
        source = self.site.places.folder(images)
        made = copy_folder(source, source.name, self.site.places.uploads)
        tell(f"'{made.folder.name}' is yours to edit.")
        return str(made.folder), gr.update(choices=self.known_folders()), arrived(made)

    def _delete(self, images: str, sure: bool) -> tuple[Any, Any, Any]:
        if not sure:
            return gr.skip(), gr.skip(), gr.skip()
        folder = self.site.places.folder(images)
        self.site.check_unused(folder)
        delete_set(folder, self.site.places.uploads)
        tell(f"'{folder.name}' was deleted.")
        left = self.known_folders()
        return left[0][1], gr.update(choices=left, value=None), ""

    def _autocaption(self, images: str, captioner: str | None) -> None:
        folder = self.site.places.folder(images)
        self.site.places.write_captions(folder / "x.png")
        known = [str(path) for path in find_captioners(self.site.places.model_folders)]
        text = captioner or ""
        where = Path(text) if text in known else self.site.places.folder(text)
        arguments = ["caption", folder, "--captioner", where]
        self.site.tasks.start("caption", folder.name, arguments)
        tell("The captioning model has started.")

    def _captioning(self, moment: Moment) -> str:
        task = moment.site.tasks.status("caption")
        if not task.label:
            return ""
        if task.running:
            return notice("live", f"Captioning {task.label}", task.output[-600:])
        if task.failed:
            return notice("bad", "Captioning failed", task.problem)
        output = f"{task.output[-300:]}\nPress Check folder."
        return notice("good", f"Captioned {task.label}", output)


def _options(
    trigger: str, template: str, min_side: Any, height: Any, width: Any, model: Any, fill: Any
) -> ScanOptions:
    return ScanOptions(
        trigger or "",
        template or "",
        int(min_side or 32),
        int(height or 64),
        int(width or 64),
        str(model or BUNDLED),
        colour(fill or "white"),
    )
