"""First style: what a real style needs, step by step, and a button that fills in the form."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.cards import CardPreset
from trainer.families import FOR_BEGINNERS
from trainer.paths import GENERAL_PROMPTS

from ..first import guide_text, missing_parts, model_parts, parts_panel
from ..form import CARD_KEYS, CPU, base_values, card_of_this_machine
from ..places import PlaceError
from ..site import QUIET, SHOWN, Site, heading, reporting, tell
from ..status import notice
from .train import TrainTab

WHY = """
The built-in *mini* model draws one moving shape at 64 pixels. It is for trying out this page and
cannot learn portraits or landscapes. Follow these four steps to use a model that can.
"""
PICTURES = """
Choose 20 to 100 pictures in **one** style that show things as different as possible, 512 pixels or
more on the shorter side. The model learns what all of them share, including a signature or a frame:
crop it away. Add them on the *Data* tab.
"""
CAPTIONS = """
Write one sentence for each about **what it shows, not how it looks**: "a woman with a red scarf on
a bridge", not "a beautiful watercolour of a woman". You can edit captions on the *Data* tab.
"""
CARD = """
The button fills in the *Train* tab for your card, with a list of 96 general prompts. The base model
makes example clips of them once, and your model learns movement from those. Then press *Test memory
and time* there: within minutes it shows whether the training fits and how long it takes.
"""


class GuideTab:
    """Components of the tab and what its buttons do."""

    def __init__(self, site: Site) -> None:
        self.site = site
        heading("Your first real style")
        gr.Markdown(WHY)
        heading("1. Get the model, about 6 GB", level=3)
        self.have = gr.HTML(elem_id="guide-have", elem_classes="heading")
        with gr.Row(equal_height=True):
            self.folder = gr.Textbox(
                label="ComfyUI's folder",
                info="The folder that contains main.py.",
                visible=site.places.comfyui is None,
                elem_id="guide-comfyui",
            )
            self.again = gr.Button("Look again", elem_id="guide-look")
        for title, text in (("2. Choose your pictures", PICTURES), ("3. Caption them", CAPTIONS)):
            heading(title, level=3)
            gr.Markdown(text)
        self._card()
        with gr.Accordion("The whole guide: times, troubleshooting, use in ComfyUI", open=False):
            gr.Markdown(guide_text(site.places.pack), elem_id="guide-text")

    def _card(self) -> None:
        heading("4. Your card", level=3)
        gr.Markdown(CARD)
        with gr.Row(equal_height=True):
            found = card_of_this_machine()
            self.card = gr.Dropdown(
                [(_card_title(preset), str(preset.gigabytes)) for preset in FOR_BEGINNERS.cards],
                value=CARD_KEYS[1] if found == CPU else found,
                label="Graphics memory",
                info="No card was found on this machine."
                if found == CPU
                else "Detected on this machine.",
                elem_id="guide-card",
            )
            self.fill = gr.Button("Fill in the form", variant="primary", elem_id="guide-fill")

    def wire(self, page: Any, tab: Any, train: TrainTab, tabs: Any) -> None:
        for event in (page.load, tab.select, self.again.click, self.folder.submit):
            event(self._look, self.folder, self.have, **QUIET)

        def fill(card: str, folder: str | None) -> list[Any]:
            if card not in CARD_KEYS[1:]:
                raise ValueError("Graphics memory: choose one from the list.")
            parts = model_parts(self.site.places, folder or "")
            if missing := missing_parts(parts[:2]):
                raise ValueError(
                    f"Not on this machine yet: {missing}. Step 1 shows where to get it."
                )
            model, module = (part.found[0] for part in parts[:2])
            draft = self.site.drafts.load()
            values = base_values(model, "recipe", card, "normal")
            values |= {name: draft.values[name] for name in ("images", "trigger")}
            values |= {"motion_module": module, "prompts": str(GENERAL_PROMPTS)}
            draft.values, draft.card, draft.quality = values, card, "normal"
            self.site.drafts.save(draft)
            tell("The form is filled in. Choose your pictures, then open the Train tab.")
            return [*train.show(draft), gr.update(selected="data")]

        inputs = [self.card, self.folder]
        self.fill.click(reporting(fill), inputs, [*train.outputs, tabs], **SHOWN)

    def _look(self, folder: str | None) -> str:
        try:
            parts = model_parts(self.site.places, folder or "")
        except PlaceError as error:
            return notice("bad", "This folder cannot be used", str(error))
        return parts_panel(parts, self.site.places, folder or "")


def _card_title(preset: CardPreset) -> str:
    size = f"{preset.frames} frames of {preset.width} x {preset.height} pixels"
    return f"{preset.gigabytes} GB card: {size}"
