"""First style: what a real style needs, and a button that fills in the form for one's card."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.paths import GENERAL_PROMPTS

from ..form import base_values
from ..places import Places
from ..presets import MEMORY, memory_choices, memory_of_this_machine
from ..site import SHOWN, Site, reporting, tell
from .train import TrainTab

TEXT = """
## Your first real style

The built-in *mini* model draws one moving shape at 64 pixels. It is for trying out this page, and
cannot learn portraits or landscapes. For your own style take a real model:

1. **Model.** All three are on Hugging Face; the folders are ComfyUI's. The *Train* tab names what
   is missing and has a field to point at files that lie elsewhere.
    * a checkpoint of Stable Diffusion 1.5 (4.3 GB, CreativeML Open RAIL-M): `models/checkpoints`
    * the motion module `mm_sd_v15_v2.ckpt` of `guoyww/animatediff` (1.8 GB, Apache-2.0):
      `models/animatediff_models`
    * the folder `facebook/dinov2-small` (0.09 GB, Apache-2.0): `models/dinov2`
2. **Pictures.** 20 to 100 in one style, as different as possible in what they show, 512 pixels or
   more on the shorter side.
3. **Captions.** One sentence each about what is there, not how it looks. The *Data* tab shows and
   changes them.
4. **Your card.** Choose it here; the button fills in the *Train* tab, with a list of 96 general
   prompts for the clips from which movement is learned.

A test on the *Train* tab then says within minutes whether it fits and how long it will take.
The whole way, with times and remedies: `docs/first-style.md`.
"""


class GuideTab:
    """Components of the tab and what its button does."""

    def __init__(self, site: Site) -> None:
        self.site = site
        gr.Markdown(TEXT, elem_id="guide")
        with gr.Row(equal_height=True):
            found = memory_of_this_machine()
            self.card = gr.Dropdown(
                memory_choices()[1:],
                value=found if found in MEMORY[1:] else MEMORY[1],
                label="Graphics memory",
                info="Found on this machine." if found in MEMORY[1:] else "No card was found here.",
                elem_id="guide-card",
            )
            self.fill = gr.Button("Fill in the form", variant="primary", elem_id="guide-fill")

    def wire(self, train: TrainTab, tabs: Any) -> None:
        def fill(card: str) -> list[Any]:
            draft = self.site.drafts.load()
            model, module = found_models(self.site.places)
            values = base_values(model, "recipe", card, "good")
            values |= {name: draft.values[name] for name in ("images", "trigger")}
            values |= {"motion_module": module, "prompts": str(GENERAL_PROMPTS)}
            draft.values, draft.memory, draft.quality = values, card, "good"
            self.site.drafts.save(draft)
            tell("The form is filled in. Choose your pictures, then look at the Train tab.")
            return [*train.show(draft), gr.update(selected="data")]

        self.fill.click(reporting(fill), self.card, [*train.outputs, tabs], **SHOWN)


def found_models(places: Places) -> tuple[str, str]:
    """An image model and a motion module of this machine.

    Raises ValueError naming what is missing.
    """
    images = [found for found in places.models() if found.needs_motion]
    modules = places.motion_modules()
    if not images or not modules:
        missing = [] if images else ["a checkpoint of Stable Diffusion 1.5 in models/checkpoints"]
        missing += [] if modules else ["a motion module in models/animatediff_models"]
        where = places.comfyui or "ComfyUI (not found: start the page with --comfyui FOLDER)"
        raise ValueError(f"Not on this machine yet: {' and '.join(missing)} of {where}.")
    return images[0].model, modules[0][1]
