"""The pictures of the Data tab, the caption of one of them, and changes to all captions."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.data.captions import raw_caption
from trainer.data.rewrite import Change, Rewrite, changes

from ..data import PAGE, Scan, save_captions, written_captions
from ..report import REMARKS, caption_cell, report, summary
from ..site import EXPECTED, QUIET, SHOWN, Site, reporting, tell
from ..status import notice
from ..uploads import remove_image

HINT = '<p class="quiet">Click a picture to read and change its caption.</p>'
KEYS = (
    "Keys: Ctrl+Enter saves and shows the next picture; Page Down and Page Up show the next and "
    "previous one."
)
CHANGES = {
    "before": "Add words at the start",
    "after": "Add words at the end",
    "replace": "Replace words",
    "trigger": "Add the trigger word",
}
KEEP = "(text, path, kept) => path ? { ...(kept || {}), [path]: text } : kept"
"""Typed and pasted text is kept in the browser, so that a reload loses nothing.

`page.js` presses the hidden buttons: Gradio's own event fires for typed letters only.
"""
SURE = """(...given) => {
  given[given.length - 1] = confirm("Delete this picture and its caption from the set?");
  return given;
}"""


class Captions:
    """Gallery, editor and the change of all captions; `scan` is what they show."""

    def __init__(self, site: Site, scan: gr.State) -> None:
        self.site, self.scan = site, scan
        self.page, self.chosen = gr.State(0), gr.State(None)
        self.before: gr.State = gr.State([])
        # Fixed names: else the browser's memory would be lost at every restart.
        self.unsaved = gr.BrowserState({}, storage_key="mcm-captions", secret="mcm-captions")
        self.path = gr.Textbox(visible=False)
        self.sure = gr.Checkbox(visible=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self._pictures()
            with gr.Column(scale=2, min_width=300):
                self._editor()
        with gr.Accordion("Change all captions", open=False):
            self._changer()

    def _pictures(self) -> None:
        self.gallery = gr.Gallery(
            label="What the model reads", columns=6, height=420, object_fit="cover",
            allow_preview=False, buttons=[], elem_id="pictures", interactive=False,
        )  # fmt: skip
        with gr.Row(elem_classes="pair"):
            self.earlier = gr.Button("Previous page", size="sm", min_width=100)
            self.later = gr.Button("Next page", size="sm", min_width=100, elem_id="next-page")

    def _editor(self) -> None:
        self.seen_as = gr.HTML(HINT, elem_id="seen-as")
        self.caption = gr.Textbox(
            label="Caption",
            info=f"[trigger] stands for the trigger word. {KEYS}",
            lines=4,
            max_lines=12,
            elem_id="caption-text",
        )
        self.typed = gr.Button(visible="hidden", elem_id="caption-typed")
        with gr.Row(elem_classes="pair"):
            self.save = gr.Button("Save", min_width=80, elem_id="save-caption")
            self.save_next = gr.Button(
                "Save and next", variant="primary", min_width=170, elem_id="save-next"
            )
        with gr.Row(elem_classes="pair"):
            self.previous = gr.Button(
                "Previous", size="sm", min_width=80, elem_id="previous-picture"
            )
            self.next = gr.Button("Next", size="sm", min_width=80, elem_id="next-picture")
            self.remove = gr.Button(
                "Remove picture", size="sm", min_width=120, elem_id="remove-picture"
            )

    def _changer(self) -> None:
        with gr.Row(equal_height=True):
            self.kind = gr.Dropdown(
                [(title, kind) for kind, title in CHANGES.items()],
                value="before", label="What to do", elem_id="change-kind",
            )  # fmt: skip
            self.words = gr.Textbox(
                label="Words",
                info="Whole words: 'ink' does not match 'pink'.",
                elem_id="change-words",
            )
            self.instead = gr.Textbox(
                label="Replace with", info="Empty: the words are removed.", visible=False,
                elem_id="change-instead",
            )  # fmt: skip
        self.words_typed = gr.Button(visible="hidden", elem_id="change-typed")
        self.foreseen = gr.HTML('<p class="quiet">Enter words to see what would change.</p>')
        with gr.Row(elem_classes="pair"):
            self.change = gr.Button("Change all captions", elem_id="change-all")
            self.undo = gr.Button("Undo the last change", interactive=False, elem_id="undo-change")

    @property
    def shown(self) -> list[Any]:
        """What `show` returns values for."""
        return [self.page, self.chosen, self.path, self.caption, self.seen_as, self.gallery,
                self.unsaved]  # fmt: skip

    def wire(self, told: list[Any]) -> None:
        """Connect the buttons; ``told`` are the summary and the report, view and page included."""
        kept = [self.scan, self.path, self.caption, self.unsaved]
        for button, step in ((self.earlier, -1), (self.later, 1)):
            button.click(
                lambda scan, page, step=step: self._turn(scan, page + step),
                [self.scan, self.page], [self.page, self.gallery], **QUIET,
            )  # fmt: skip
        self.gallery.select(reporting(self._choose), [*kept, self.page], self.shown, **QUIET)
        steps = {"inputs": [*kept, self.chosen], "outputs": self.shown, **QUIET}
        for button, step in ((self.previous, -1), (self.next, 1)):
            button.click(lambda *given, step=step: self._step(*given, step=step), **steps)
        saved = [self.scan, *told, *self.shown]
        for button, step in ((self.save, 0), (self.save_next, 1)):
            button.click(
                reporting(lambda *given, step=step: self._save(*given, step=step)),
                [*kept, self.chosen], saved, **SHOWN,
            )  # fmt: skip
        self.typed.click(
            None, [self.caption, self.path, self.unsaved], self.unsaved, js=KEEP, **QUIET
        )
        self.typed.click(
            self._foretell, [self.scan, self.chosen, self.caption], self.seen_as,
            trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.remove.click(
            reporting(self._remove), [self.scan, self.chosen, self.unsaved, self.sure],
            saved, js=SURE, **SHOWN,
        )  # fmt: skip
        self._wire_changer(saved)

    def _wire_changer(self, saved: list[Any]) -> None:
        change = [self.scan, self.kind, self.words, self.instead]
        self.kind.change(
            lambda kind: (gr.update(visible=kind != "trigger"),
                          gr.update(visible=kind == "replace")),
            self.kind, [self.words, self.instead], **QUIET,
        )  # fmt: skip
        for part in (self.kind.change, self.words_typed.click):
            part(self._foresee, change, self.foreseen, trigger_mode="always_last", **QUIET)
        outputs = [self.before, self.undo, self.foreseen, *saved]
        self.change.click(
            reporting(self._change_all), [*change, self.chosen, self.unsaved], outputs, **SHOWN
        )
        self.undo.click(
            reporting(self._undo), [self.scan, self.before, self.chosen, self.unsaved], outputs,
            **SHOWN,
        )  # fmt: skip

    def show(
        self, scan: Scan | None, index: int | None, kept: dict[str, str] | None, page: int = 0
    ) -> list[Any]:
        """Values of `shown`: a page of pictures, and picture ``index`` of all with its caption."""
        kept = dict(kept or {})
        if scan is None:
            return [0, None, "", "", HINT, gr.update(value=[]), kept]
        if index is None:
            return [page, None, "", "", HINT, self._thumbs(scan, page, None), kept]
        index = min(max(index, 0), len(scan.used) - 1)
        path = str(scan.used[index].path)
        written = raw_caption(scan.used[index].path, scan.folder.root)
        text = kept.get(path, written)
        if text == written:
            kept.pop(path, None)
        seen = self._seen(scan, index, text)
        thumbs = self._thumbs(scan, index // PAGE, index % PAGE)
        return [index // PAGE, index, path, text, seen, thumbs, kept]

    def _thumbs(self, scan: Scan, page: int, selected: int | None) -> Any:
        part = scan.used[page * PAGE : (page + 1) * PAGE]
        items = [(str(self.site.scans.thumbnail(r)), r.caption or "(nothing)") for r in part]
        pages = max(1, -(-len(scan.used) // PAGE))
        title = f"What the model reads (page {page + 1} of {pages})"
        return gr.update(value=items, label=title, selected_index=selected)

    def _seen(self, scan: Scan, index: int, text: str) -> str:
        """The prompt made from ``text``, with its problems."""
        record = scan.used[index]
        written = raw_caption(record.path, scan.folder.root)
        told = scan.rules.prompt(text)
        lines = [f"The model reads: {told.text or '(nothing)'}", *told.problems]
        if not text.strip():
            lines.append(
                "This image has no caption, so the model reads the caption for images without one."
            )
        colour, state = ("warn", "not saved yet") if text.strip() != written else ("quiet", "")
        name = f"{index + 1} of {len(scan.used)}: {record.path.name}"
        return notice(colour, f"{name} - {state}" if state else name, "\n".join(lines))

    def _turn(self, scan: Scan | None, page: int) -> tuple[int, Any]:
        if scan is None:
            return 0, gr.skip()
        page = min(max(page, 0), max(0, (len(scan.used) - 1) // PAGE))
        return page, self._thumbs(scan, page, None)

    def _choose(
        self, scan: Scan | None, path: str, text: str, kept: Any, page: int, event: gr.SelectData
    ) -> list[Any]:
        index = page * PAGE + int(event.index)
        return self.show(scan, index, self._kept(scan, path, text, kept))

    def _step(
        self, scan: Scan | None, path: str, text: str, kept: Any, index: int | None, *, step: int
    ) -> list[Any]:
        target = 0 if index is None else index + step
        return self.show(scan, target, self._kept(scan, path, text, kept))

    def _kept(self, scan: Scan | None, path: str, text: str, kept: Any) -> dict[str, str]:
        """Texts that were typed and not saved, by image; that of ``path`` is ``text``."""
        texts = dict(kept or {})
        if scan is not None and path in {str(record.path) for record in scan.used}:
            texts[path] = text or ""
            if texts[path] == raw_caption(Path(path), scan.folder.root):
                del texts[path]
        return texts

    def _foretell(self, scan: Scan | None, index: int | None, text: str) -> Any:
        if scan is None or index is None or index >= len(scan.used):
            return gr.skip()
        return self._seen(scan, index, text or "")

    def _save(
        self, scan: Scan | None, path: str, text: str, kept: Any, index: int | None, *, step: int
    ) -> list[Any]:
        if scan is None or index is None:
            raise ValueError("Click a picture first.")
        image = scan.used[index].path
        self.site.places.write_captions(image)
        scan = save_captions(scan, [(image, text or "")])
        kept = {name: words for name, words in (kept or {}).items() if name != str(image)}
        if step == 0 or index + 1 == len(scan.used):
            tell("Caption saved.")
        changed = self._changed(scan, index + step, kept)
        if step == 0:  # somebody may still be typing
            changed[5 + self.shown.index(self.caption)] = gr.skip()
        return changed

    def _changed(self, scan: Scan, index: int | None, kept: Any) -> list[Any]:
        """The new scan, summary, report and its view, and `shown`."""
        return [scan, summary(scan), REMARKS, 0, report(scan), *self.show(scan, index, kept)]

    def _remove(self, scan: Scan | None, index: int | None, kept: Any, sure: bool) -> list[Any]:
        if scan is None or index is None:
            raise ValueError("Click the picture to remove first.")
        if not sure:
            return [gr.skip()] * (5 + len(self.shown))
        if len(scan.used) == 1:
            raise ValueError("This is the last picture. Delete the whole set instead.")
        image = scan.used[index].path
        self.site.check_unused(scan.folder.root)
        remove_image(image, self.site.places.uploads)
        return self._changed(scan.without(image), index, kept)

    def _rewrite(self, scan: Scan, kind: str, words: str, instead: str) -> list[Change]:
        trigger = scan.rules.trigger
        rewrite = Rewrite(kind, words or "", instead or "", trigger)  # type: ignore[arg-type]
        return changes(written_captions(scan), rewrite)

    def _foresee(self, scan: Scan | None, kind: str, words: str, instead: str) -> str:
        try:
            if scan is None:
                return ""
            changed = self._rewrite(scan, kind, words, instead)
        except EXPECTED as error:
            return f'<p class="quiet">{escape(str(error))}</p>'
        bare = len(scan.uncaptioned)
        count = f"{len(changed)} of {len(scan.used) - bare} captions would change."
        left = f" {bare} images without a caption stay unchanged." if bare else ""
        rows = "".join(
            f"<tr><td>{caption_cell(old)}</td><td>{caption_cell(new)}</td></tr>"
            for _, old, new in changed[:3]
        )
        head = "<thead><tr><th>Before (examples)</th><th>After</th></tr></thead>"
        table = f'<table class="files fixed">{head}<tbody>{rows}</tbody></table>' if rows else ""
        return f"<p>{count}{left}</p>{table}"

    def _change_all(
        self, scan: Scan | None, kind: str, words: str, instead: str, index: int | None, kept: Any
    ) -> list[Any]:
        if scan is None:
            raise ValueError("Open a folder first.")
        self.site.places.write_captions(scan.folder.root / "x.png")
        changed = self._rewrite(scan, kind, words, instead)
        if not changed:
            raise ValueError("No caption would change.")
        scan = save_captions(scan, [(path, new) for path, _, new in changed])
        tell(f"{len(changed)} captions changed.")
        return [changed, gr.update(interactive=True), "", *self._changed(scan, index, kept)]

    def _undo(
        self, scan: Scan | None, changed: list[Change], index: int | None, kept: Any
    ) -> list[Any]:
        """Take a change back, but not from captions that were edited after it."""
        if scan is None or not changed or not changed[0][0].is_relative_to(scan.folder.root):
            raise ValueError("There is no change in this folder to undo.")
        now = dict(written_captions(scan))
        back = [(path, old) for path, old, new in changed if now.get(path) == new.strip()]
        scan = save_captions(scan, back)
        edited = len(changed) - len(back)
        left = f" {edited} were edited since and were kept." if edited else ""
        tell(f"{len(back)} captions were restored.{left}")
        return [[], gr.update(interactive=False), "", *self._changed(scan, index, kept)]
