"""Data: the folder of style images, its captions, and a report of every file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.data.captioner import find_captioners
from trainer.data.captions import raw_caption
from trainer.mini.styles import style_folder

from ..data import PAGE, Scan, ScanOptions, report, save_caption, summary
from ..form import component
from ..places import EXAMPLES
from ..site import EXPECTED, QUIET, SHOWN, Site, reporting, tell
from ..status import notice
from ..uploads import KEPT, copy_folder, receive
from ..watch import Moment, Watch

NOTHING = '<p class="empty">Choose a folder or upload images, then press <b>Check folder</b>.</p>'
SCANNED = (
    "images", "trigger", "prompt_template", "data.min_side", "data.height", "data.width", "model",
)  # fmt: skip
"""Fields that decide what a scan sees, in the order of `DataTab.look`."""
HINT = "Click a picture to read and change its caption."


class DataTab:
    """Components of the tab and what their buttons do."""

    def __init__(self, site: Site, watch: Watch) -> None:
        self.site = site
        self.fields: dict[str, Any] = {}
        self.scan = gr.State(None)
        self.page = gr.State(0)
        self.chosen = gr.State(None)
        self._source()
        self.summary = gr.HTML(NOTHING)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                self._pictures()
            with gr.Column(scale=2, min_width=300):
                self._editor()
        self.report = gr.HTML()
        self._captioner(watch)

    def _source(self) -> None:
        with gr.Row(equal_height=True):
            with gr.Column(scale=3):
                self.fields["images"] = component("images")
            with gr.Column(scale=1, min_width=160):
                self.check = gr.Button("Check folder", variant="primary", elem_id="check-folder")
                self.upload = gr.UploadButton(
                    "Upload images or a zip",
                    file_count="multiple",
                    file_types=[*sorted(KEPT), ".zip"],
                    elem_id="upload-images",
                )
        with gr.Row(equal_height=True):
            self.folders = gr.Dropdown(
                choices=self.known_folders(),
                label="Or take one of these",
                info="The example styles and the folders that were uploaded here.",
                allow_custom_value=True,
                value=None,
                elem_id="known-folders",
            )
            self.fields["trigger"] = component("trigger")
            self.fields["prompt_template"] = component("prompt_template")

    def _pictures(self) -> None:
        self.gallery = gr.Gallery(
            label="Captions as the model sees them",
            columns=6,
            height=420,
            object_fit="cover",
            allow_preview=False,
            buttons=[],
            elem_id="pictures",
            interactive=False,
        )
        with gr.Row():
            self.earlier = gr.Button("Earlier", size="sm")
            self.later = gr.Button("More", size="sm")

    def _editor(self) -> None:
        self.seen_as = gr.HTML(f'<p class="quiet">{HINT}</p>')
        self.caption = gr.Textbox(
            label="Caption",
            info="[trigger] stands for the trigger word. Saved as UTF-8 text beside the image.",
            lines=4,
            elem_id="caption-text",
        )
        with gr.Row():
            self.save = gr.Button("Save caption", elem_id="save-caption")
            self.copy = gr.Button("Copy to my folders", elem_id="copy-folder")

    def _captioner(self, watch: Watch) -> None:
        found = [str(path) for path in find_captioners(self.site.places.model_folders)]
        with gr.Accordion("Captions by a model of yours", open=False):
            gr.HTML(
                '<p class="quiet">A captioner (BLIP, BLIP-2 or GIT, a transformers folder) writes '
                "captions for images that have none. It has to be on this machine: nothing is "
                "downloaded. Read what it wrote; captioners are often wrong.</p>"
            )
            with gr.Row(equal_height=True):
                self.captioner = gr.Dropdown(
                    found,
                    value=found[0] if found else None,
                    label="Folder of the captioner",
                    info="Found on this machine, or type a folder."
                    if found
                    else "None was found in the Hugging Face cache; type the folder of one.",
                    allow_custom_value=True,
                    elem_id="captioner",
                )
                self.autocaption = gr.Button("Write missing captions", elem_id="autocaption")
            self.captioning = gr.HTML()
        watch.add(self.captioning, self._captioning)

    def known_folders(self) -> list[tuple[str, str]]:
        """Example styles and uploads, as (title, path)."""
        examples = [(f"example: {name}", str(style_folder(name))) for name in EXAMPLES]
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
        self.options = [form[name] for name in SCANNED]
        looked = [self.scan, self.page, self.chosen, self.summary, self.report, self.gallery]
        self.outputs = looked
        self.check.click(self.look, self.options, looked, **SHOWN)
        self.fields["images"].submit(self.look, self.options, looked, **SHOWN)
        picked = self.folders.input(self._pick, self.folders, self.fields["images"], **QUIET)
        picked.then(self.look, self.options, looked, **SHOWN)
        uploaded = self.upload.upload(
            reporting(self._upload), self.upload, [self.fields["images"], self.folders], **SHOWN
        )
        uploaded.success(self.look, self.options, looked, **SHOWN)
        copied = self.copy.click(
            reporting(self._copy),
            self.fields["images"],
            [self.fields["images"], self.folders],
            **SHOWN,
        )
        copied.success(self.look, self.options, looked, **SHOWN)
        self._wire_captions()

    def _wire_captions(self) -> None:
        for button, step in ((self.earlier, -1), (self.later, 1)):
            button.click(
                lambda scan, page, step=step: self._turn(scan, page + step),
                [self.scan, self.page],
                [self.page, self.gallery],
                **QUIET,
            )
        self.gallery.select(
            reporting(self._choose),
            [self.scan, self.page],
            [self.chosen, self.caption, self.seen_as],
            **QUIET,
        )
        self.save.click(
            reporting(self._save),
            [self.scan, self.page, self.chosen, self.caption],
            [self.scan, self.summary, self.report, self.gallery, self.seen_as],
            **SHOWN,
        )
        self.autocaption.click(
            reporting(self._autocaption), [self.fields["images"], self.captioner], None, **QUIET
        )

    def look(
        self, images: str, trigger: str, template: str, *rest: Any
    ) -> tuple[Any, int, None, str, str, Any]:
        """Scan the folder; a folder that cannot be used becomes a message in place of pictures."""
        min_side, height, width, model = rest
        try:
            folder = self.site.places.folder(images)
            options = ScanOptions(
                trigger or "",
                template or "",
                int(min_side or 32),
                int(height or 64),
                int(width or 64),
                str(model or "mini"),
            )
            scan = self.site.scans.scan(folder, options)
        except EXPECTED as error:
            first, _, rest_of_it = str(error).partition("\n\n")
            details = f"<details><summary>Every file</summary>{notice('quiet', '', rest_of_it)}"
            shown = notice("bad", "This folder cannot be used", first)
            more = f"{details}</details>" if rest_of_it else ""
            return None, 0, None, shown, more, gr.update(value=[])
        self.site.drafts.update({"images": str(folder)})
        return scan, 0, None, summary(scan), report(scan), self._thumbs(scan, 0)

    def _thumbs(self, scan: Scan, page: int) -> Any:
        part = scan.used[page * PAGE : (page + 1) * PAGE]
        items = [(str(self.site.scans.thumbnail(r)), r.caption or "(no caption)") for r in part]
        last = max(0, (len(scan.used) - 1) // PAGE)
        title = f"Captions as the model sees them (page {page + 1} of {last + 1})"
        return gr.update(value=items, label=title, selected_index=None)

    def _turn(self, scan: Scan | None, page: int) -> tuple[int, Any]:
        if scan is None:
            return 0, gr.skip()
        page = min(max(page, 0), max(0, (len(scan.used) - 1) // PAGE))
        return page, self._thumbs(scan, page)

    def _pick(self, folder: str | None) -> Any:
        return folder or gr.skip()

    def _upload(self, files: list[str] | None) -> tuple[str, Any]:
        paths = [Path(file) for file in files or []]
        name = paths[0].stem if len(paths) == 1 else "my-images"
        received = receive(paths, name, self.site.places.uploads)
        left = f"; {len(received.left_out)} left out" if received.left_out else ""
        tell(f"{received.files} files received{left}.")
        return str(received.folder), gr.update(choices=self.known_folders())

    def _copy(self, images: str) -> tuple[str, Any]:
        source = self.site.places.folder(images)
        made = copy_folder(source, source.name, self.site.places.uploads)
        tell(f"{made.files} files copied to '{made.folder.name}'. Edit away.")
        return str(made.folder), gr.update(choices=self.known_folders())

    def _choose(
        self, scan: Scan | None, page: int, event: gr.SelectData
    ) -> tuple[int | None, str, str]:
        if scan is None:
            return None, "", HINT
        index = page * PAGE + int(event.index)
        record = scan.used[index]
        return index, raw_caption(record.path, scan.folder.root), self._seen(scan, index)

    def _seen(self, scan: Scan, index: int) -> str:
        record = scan.used[index]
        return notice("quiet", record.path.name, f"The model sees: {record.caption or '(nothing)'}")

    def _save(
        self, scan: Scan | None, page: int, index: int | None, text: str
    ) -> tuple[Any, str, str, Any, str]:
        if scan is None or index is None:
            raise ValueError("Click a picture first; its caption is then saved here.")
        self.site.places.write_captions(scan.used[index].path)
        scan = save_caption(scan, index, text or "")
        tell("Caption saved.")
        seen = self._seen(scan, index)
        return scan, summary(scan), report(scan), self._thumbs(scan, page), seen

    def _autocaption(self, images: str, captioner: str | None) -> None:
        folder = self.site.places.folder(images)
        self.site.places.write_captions(folder / "x.png")
        known = [str(path) for path in find_captioners(self.site.places.model_folders)]
        text = captioner or ""
        where = Path(text) if text in known else self.site.places.folder(text)
        arguments = ["caption", folder, "--captioner", where]
        self.site.tasks.start("caption", folder.name, arguments)
        tell("The captioner has started.")

    def _captioning(self, moment: Moment) -> str:
        task = moment.site.tasks.status("caption")
        if not task.label:
            return ""
        if task.running:
            return notice("live", f"Captioning {task.label}", task.output[-600:])
        if task.failed:
            return notice("bad", "Captioning failed", task.problem)
        return notice("good", f"Captioned {task.label}", f"{task.output[-300:]}\nPress Check.")
