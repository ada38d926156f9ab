"""Train: base model, presets, run name, every setting, checks, start; settings to share."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.config import TrainConfig, load_config, to_toml
from trainer.runs.folder import slug
from trainer.settings import QUALITY_PRESETS, Recipe
from trainer.settings import TrainConfig as Settings

from ..draft import Draft
from ..form import (
    CARD_KEYS,
    NAMES,
    RECORDS,
    card_choices,
    component,
    label,
    proposals,
    quality_choices,
    to_config,
)
from ..site import QUIET, SHOWN, Site, reporting, tell
from ..status import notice
from ..watch import Watch
from .check import CheckPart

FRONT = ("steps", "minutes")
SECTIONS = {
    "data": "How many frames the discriminator sees, and how the base model makes its example "
    "clips.",
    "trajectory": "The base model (teacher) makes a clip in many small steps. These settings "
    "choose from which of them the few-step model (student) learns to jump straight to the end.",
    "motion": "The few-step model (student) should move like the base model (teacher). These "
    "settings choose how that is measured and how much it counts.",
    "adversarial": "A discriminator (a network that tells your images from the model's frames) "
    "teaches the few-step model (student) your look.",
    "optim": "How each training step changes the LoRA.",
    "hardware": "Precision and memory. <b>Saving memory</b> sets most of these.",
    "preview": "Clips made during the training, for the Samples tab.",
}
"""What each group of expert settings is about, without jargon."""
MORE_TITLE = "Other files and start options"
FOR_TRYING_OUT = (
    '<p class="quiet"><b>The {name} model draws {what}: for trying out.</b> It cannot learn '
    "portraits or landscapes; the <b>First style</b> tab shows how to get one that can.</p>"
)
MORE = (
    "prompts", "preview.prompts", "videos", "vae", "text_encoder", "tiny_vae",
    "other_expert", "start_from", "seed", "preset",
)  # fmt: skip
"""What an artist may want to set without knowing the method."""
COMPUTING = "LoRA, learning rate and hardware"
USUAL = {
    "data": "Clips and images",
    "": COMPUTING, "lora": COMPUTING, "optim": COMPUTING, "hardware": COMPUTING,
    "preview": "Previews and checkpoints", "checkpoint": "Previews and checkpoints",
}  # fmt: skip
"""Titles of the groups that are always shown, by the part of their settings."""


class TrainTab:
    """Components of the tab and what their buttons do."""

    def __init__(self, site: Site, watch: Watch, fields: dict[str, Any]) -> None:
        self.site, self.fields = site, fields
        self.before = gr.State(None)
        self._front()
        self.checks = CheckPart(site, watch, self.config, self.draft_of)
        self._advanced()
        self._sharing()

    def _front(self) -> None:
        with gr.Row(equal_height=True):
            self.fields["model"] = gr.Dropdown(
                self.models(),
                label="Base model",
                info="The video model your style is added to, from those on this machine.",
                allow_custom_value=True,
                elem_id="field-model",
            )
            self.fields["motion_module"] = gr.Dropdown(
                self.motion_modules(),
                label=label("motion_module"),
                info="Only for Stable Diffusion 1.5: turns it into a video model.",
                allow_custom_value=True,
                elem_id="field-motion-module",
            )
            self.card = gr.Dropdown(
                card_choices(),
                label="Graphics memory",
                info="Sets clip size, LoRA rank, batch size and memory saving.",
                elem_id="card",
            )
            self.quality = gr.Dropdown(
                quality_choices(),
                label="Training length",
                info="Longer training comes closer to the style.",
                elem_id="quality",
            )
        self.about = gr.HTML()
        with gr.Row(equal_height=True):
            self.name = gr.Textbox(
                label="Run name",
                info="Name of the run's folder and of the LoRA file, at most 64 letters.",
                max_length=64,
                elem_id="run-name",
            )
            for name in FRONT:
                self.fields[name] = component(name)

    def _advanced(self) -> None:
        usual: dict[str, list[str]] = {MORE_TITLE: list(MORE)}
        expert: dict[str, list[str]] = {}
        for name in NAMES:
            part = RECORDS[name].part
            if RECORDS[name].expert:
                expert.setdefault(part, []).append(name)
            elif name not in self.fields and name not in MORE:
                usual.setdefault(USUAL[part], []).append(name)
        for title, names in usual.items():
            self._group(title, names)
        self.expert = gr.Checkbox(
            label="Expert: show every setting of the method",
            info="Optional: all have good values.",
            elem_id="expert",
        )
        titles = {**Settings.model_fields, **Recipe.model_fields}
        with gr.Column(visible=False) as self.advanced:
            for part, names in expert.items():
                more = ", more" if part in USUAL else ""
                self._group(f"{titles[part].description}{more}", names, SECTIONS[part])

    def _group(self, title: str, names: Sequence[str], about: str = "") -> None:
        with gr.Accordion(title, open=False):
            if about:
                gr.HTML(f'<p class="quiet">{about}</p>')
            for start in range(0, len(names), 3):
                with gr.Row(equal_height=True):
                    for name in names[start : start + 3]:
                        self.fields[name] = component(name)

    def _sharing(self) -> None:
        with gr.Accordion("Save, load and share settings", open=False):
            with gr.Row(equal_height=True):
                self.save = gr.Button("Save settings", elem_id="save-config")
                self.load = gr.UploadButton(
                    "Load a settings file", file_types=[".toml"], elem_id="load-config"
                )
                self.saved = gr.Dropdown(
                    self.configs(), label="Saved settings", value=None, allow_custom_value=True
                )
            self.file = gr.File(label="The settings as a TOML file, to share", interactive=False)
            self.loaded = gr.HTML()

    def models(self) -> list[tuple[str, str]]:
        """(title, value) of every base model."""
        return [(found.name, found.model) for found in self.site.places.models()]

    def motion_modules(self) -> list[tuple[str, str]]:
        """(title, value) of every motion module, and of none."""
        return [("none", ""), *self.site.places.motion_modules()]

    def configs(self) -> list[str]:
        """Names of the saved settings."""
        return sorted(file.stem for file in self.site.places.configs.glob("*.toml"))

    @property
    def inputs(self) -> list[Any]:
        """Every component of the form, in the order of `NAMES`, then name and choosers."""
        return [*(self.fields[n] for n in NAMES), self.name, self.card, self.quality]

    @property
    def outputs(self) -> list[Any]:
        """What `show` fills: the form, the model's description, the choosers as they are."""
        return [*self.inputs, self.about, self.before]

    def wire(self, run_choice: Any, tabs: Any) -> None:
        form = self.inputs
        chosen = (self.fields[name] for name in ("model", "preset", "memory"))
        choosers = (*chosen, self.card, self.quality)
        settings = [part for part in form if part not in choosers]
        left = [part.blur for part in settings if isinstance(part, gr.Textbox)]
        gr.on(
            [*(part.input for part in settings), *left],  # what is pasted is no input of a Textbox
            self._keep,
            form,
            None,
            trigger_mode="always_last",
            **QUIET,
        )
        gr.on(
            [part.input for part in choosers],
            reporting(self._choose),
            [*form, self.before],
            self.outputs,
            trigger_mode="always_last",
            **QUIET,
        )
        self.checks.wire(form, self.fields, [run_choice, tabs, self.name])
        self.expert.change(
            lambda shown: gr.update(visible=shown), self.expert, self.advanced, **QUIET
        )
        self.save.click(reporting(self._save), form, [self.file, self.saved], **SHOWN)
        filled = [*self.outputs, self.loaded]
        self.load.upload(reporting(self._load), self.load, filled, **SHOWN)
        self.saved.input(reporting(self._load_saved), self.saved, filled, **SHOWN)

    def fill(self) -> list[Any]:
        """Updates of all `outputs`, from the saved draft."""
        return self.show(self.site.drafts.load())

    def show(self, draft: Draft) -> list[Any]:
        """Updates of all `outputs`, from ``draft``."""
        values: list[Any] = [draft.values[n] for n in NAMES]
        place = NAMES.index("model")
        values[place] = gr.update(value=draft.values["model"], choices=self.models())
        place = NAMES.index("motion_module")
        values[place] = gr.update(
            value=draft.values["motion_module"], choices=self.motion_modules()
        )
        choosers = [draft.card, draft.quality]
        return [*values, draft.name, *choosers, self._about(draft), draft.choosers]

    def _about(self, draft: Draft) -> str:
        """The licence of the base model, and what to expect of the quality."""
        speeds = {found.model: found.speed for found in self.site.places.models()}
        quality = QUALITY_PRESETS[draft.quality].about(speeds.get(draft.values["model"]))
        return f'{self._about_model(draft)}<p class="quiet">{escape(quality)}</p>'

    def _about_model(self, draft: Draft) -> str:
        model = draft.values["model"]
        for found in self.site.places.models():
            if found.model != model:
                continue
            if found.for_trying_out:
                name, what = escape(Path(found.model).name), escape(found.for_trying_out)
                return FOR_TRYING_OUT.format(name=name, what=what)
            licence = f"Licence of the weights: <b>{escape(found.licence)}</b>."
            if not found.commercial:
                licence += " <b>No commercial use</b> of the model or of anything made with it."
            return f'<p class="quiet">{licence}</p>'
        return '<p class="quiet">Your own model folder.</p>'

    @staticmethod
    def draft_of(values: Sequence[Any]) -> Draft:
        """The draft that the form's components hold."""
        *fields, name, card, quality = values
        if card not in CARD_KEYS or quality not in QUALITY_PRESETS:
            raise ValueError("Choose card and quality from their lists.")
        return Draft(dict(zip(NAMES, fields, strict=True)), str(name or ""), card, quality)

    def _keep(self, *values: Any) -> None:
        self.site.drafts.save(self.draft_of(values))

    def _choose(self, *inputs: Any) -> list[Any]:
        """A chooser changed: fill in what it proposes and leave everything else alone."""
        *values, before = inputs
        draft = self.draft_of(values)
        changes = proposals(before or draft.choosers, draft.choosers)
        changes |= self._companion(draft)
        draft.values.update(changes)
        self.site.drafts.save(draft)
        shown = [changes.get(name, gr.skip()) for name in NAMES]
        return [*shown, *[gr.skip()] * 3, self._about(draft), draft.choosers]

    def _companion(self, draft: Draft) -> dict[str, str]:
        """A motion module for an image model that has none yet; none for a video model."""
        models = {found.model: found for found in self.site.places.models()}
        chosen = models.get(draft.values["model"])
        if chosen is None or chosen.needs_motion == bool(draft.values["motion_module"]):
            return {}
        modules = self.site.places.motion_modules() if chosen.needs_motion else []
        return {"motion_module": modules[0][1] if modules else ""}

    def config(self, values: Sequence[Any]) -> tuple[TrainConfig, Path]:
        """The checked config and the folder of the new run."""
        draft = self.draft_of(values)
        folder = self.site.places.new_run(draft.name)
        return to_config(draft.values, self.site.places, folder), folder

    def _save(self, *values: Any) -> tuple[str, Any]:
        config, folder = self.config(values)
        file = self.site.places.configs / f"{folder.name}.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        tell(f"Saved as '{file.stem}'.")
        return str(file), gr.update(choices=self.configs())

    def _load(self, file: str) -> list[Any]:
        return self._show_config(Path(file), Path(file).stem)

    def _load_saved(self, name: str | None) -> list[Any]:
        if name not in self.configs():
            raise ValueError("Choose one of the saved settings.")
        return self._show_config(self.site.places.configs / f"{name}.toml", str(name))

    def _show_config(self, file: Path, name: str) -> list[Any]:
        draft, left = self.site.drafts.from_config(load_config(file), slug(name))
        self.site.drafts.save(draft)
        text = "\n".join(left) or "All settings were loaded."
        shown = notice("warn" if left else "good", "Settings loaded", text)
        return [*self.show(draft), shown]
