"""The form: every field of `TrainConfig` as a component, and a filled form as a `TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.cards import CARDS, card_gib
from trainer.config import (
    PRESETS,
    ConfigError,
    ConfigField,
    TrainConfig,
    fields,
    load_config,
    values_of,
)
from trainer.families import card_settings
from trainer.paths import BUNDLED, bundled
from trainer.settings import QUALITY_PRESETS
from trainer.settings.presets import memory_values

from .places import PlaceError, Places

NOT_IN_FORM = ("run", "data.cache")
"""The page sets the folders of runs and caches."""
RECORDS: dict[str, ConfigField] = {r.name: r for r in fields() if r.name not in NOT_IN_FORM}
NAMES = tuple(RECORDS)
PATHS = (
    "images", "videos", "prompts", "motion_module", "vae", "text_encoder", "tiny_vae",
    "other_expert",
)  # fmt: skip
NAMED = {
    "start_from": ("auto", "none"),
    "adversarial.features": ("auto", BUNDLED, "dinov2", "efficientnet-lite0"),
}
"""Settings that take a path or one of these names, the first where they are empty."""

LABELS = {
    "model": "Base model",
    "images": "Folder of style images",
    "videos": "Folder of motion videos",
    "prompts": "Prompts file",
    "motion_module": "Motion module",
    "vae": "VAE",
    "text_encoder": "Text encoder",
    "tiny_vae": "Tiny VAE",
    "other_expert": "Other expert (Wan 2.2)",
    "trigger": "Trigger word",
    "prompt_template": "Caption for images without one",
    "steps": "Training steps",
    "minutes": "Time limit in minutes",
    "start_from": "Start from",
    "memory": "Saving memory",
    "preset": "Method",
    "data.library_clips": "Example clips",
    "data.library_steps": "Sampling steps per example clip",
    "data.library_guidance": "Guidance of example clips",
    "data.batch_size": "Clips per batch",
    "data.frames_per_clip": "Frames for the discriminator",
    "data.fps": "Frames per second",
    "data.min_side": "Smallest image side",
    "data.background": "Fill colour",
    "preview.prompts": "Prompts for the previews",
    "preview.teacher_steps": "Sampling steps of the original",
    "trajectory.ddim_timesteps": "Timesteps of the base model",
    "motion.weight": "Weight of motion",
    "adversarial.ratio": "Style against motion",
    "adversarial.weight": "Weight of style",
    "adversarial.features": "Feature network",
    "adversarial.lr": "Learning rate of the discriminator",
    "optim.lr": "Learning rate",
    "optim.accumulation": "Batches per training step",
    "hardware.gradient_checkpointing": "Gradient checkpointing (saves memory)",
    "preview.every": "Training steps between previews",
    "preview.count": "Prompts per preview",
    "preview.steps": "Sampling steps shown",
    "checkpoint.every": "Training steps between checkpoints",
    "checkpoint.keep": "Checkpoints to keep",
}
"""Labels for fields whose own name would be unclear."""


def label(name: str) -> str:
    """What a field is called on the page."""
    return LABELS.get(name) or name.rpartition(".")[2].replace("_", " ").capitalize()


def component(name: str, **options: Any) -> Any:
    """The component of a field, with its help; limits are checked by `TrainConfig` itself."""
    record = RECORDS[name]
    allowed = f" Allowed: {record.allowed}." if record.allowed and not record.choices else ""
    shared = {
        "label": label(name),
        "info": f"{record.help}{'' if record.type == 'bool' else allowed}",
        "elem_id": f"field-{name.replace('.', '-').replace('_', '-')}",
        **options,
    }
    if record.type == "bool":
        return gr.Checkbox(**shared)
    if record.type == "choice":
        return gr.Dropdown(list(record.choices), **shared)
    if record.type in ("int", "float"):
        return gr.Number(precision=0 if record.type == "int" else None, **shared)
    return gr.Textbox(lines=3 if record.type == "strs" else 1, max_lines=8, **shared)


def to_form(config: TrainConfig) -> dict[str, Any]:
    """Component values by name."""
    found: dict[str, Any] = {}
    values = values_of(config)
    for name, record in RECORDS.items():
        value = values[name]
        if isinstance(value, tuple):
            value = ("\n" if record.type == "strs" else ", ").join(str(item) for item in value)
        elif isinstance(value, Path):
            value = str(value)
        elif value is None and record.type not in ("int", "float"):
            value = ""
        found[name] = value
    return found


def to_config(values: Mapping[str, Any], places: Places, run: Path) -> TrainConfig:
    """A checked config with absolute paths inside the allowed folders.

    Raises `ConfigError` naming the field, or `PlaceError` for a path.
    """
    given = {}
    for name, record in RECORDS.items():
        value = values.get(name)
        if value is None and not record.optional:
            if record.type in ("int", "float"):
                raise ConfigError(f"{label(name)} is empty; enter a number. {record.help}")
            value = record.default if record.type == "choice" else ""
        given[name] = value
    for name in PATHS:
        given[name] = _path(given[name], name, places)
    given["model"] = model_path(str(given["model"] or BUNDLED), places)
    for name, known in NAMED.items():
        text = str(given[name] or known[0])
        given[name] = text if text in known else str(_path(text, name, places))
    return load_config(overrides={**given, "run": run})


def _path(text: Any, name: str, places: Places) -> Path | None:
    if not text or not str(text).strip():
        return None
    read = places.folder if name in ("images", "videos") else places.read
    try:
        found = read(str(text))
    except PlaceError as error:
        raise PlaceError(f"{label(name)}: {error}") from error
    if not found.exists():
        raise PlaceError(f"{label(name)}: '{text}' does not exist; check the spelling.")
    return found


def model_path(text: str, places: Places) -> str:
    """A name of the list of models, or the path of one inside the allowed folders."""
    if bundled(text) or text in {found.model for found in places.models()}:
        return text
    try:
        found = places.read(text)
    except PlaceError as error:
        raise PlaceError(f"{label('model')}: {error}") from error
    if not found.exists():
        raise PlaceError(f"Base model: '{text}' does not exist; choose one from the list.")
    return str(found)


def base_values(model: str, preset: str, card: str, quality: str) -> dict[str, Any]:
    """The values that the four choosers together propose, by component."""
    overrides = {"model": model, "preset": preset if preset in PRESETS else "recipe"}
    changes = {**card_values(card, model), **QUALITY_PRESETS[quality].values}
    return to_form(load_config(overrides={**overrides, **changes}))


def proposals(before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """Values that change when choosers go from ``before`` to ``after`` (model, preset, card,
    quality, memory); what the user typed elsewhere stays.
    """
    if before[-1] != after[-1]:
        return memory_values(after[-1])
    old, new = base_values(*before[:-1]), base_values(*after[:-1])
    skip = {"model", "preset", *PATHS, "trigger", "prompt_template"}
    return {n: new[n] for n in NAMES if n not in skip and old[n] != new[n]}


CPU = "cpu"
CARD_KEYS = (CPU, *(str(size) for size in CARDS))
"""Keys of the presets by card."""


def card_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by card."""
    return [("No card (CPU)" if key == CPU else f"{key} GB card", key) for key in CARD_KEYS]


def card_values(key: str, model: str) -> dict[str, Any]:
    """Settings of a card preset; the mini model fits everywhere and keeps its own."""
    if key not in CARD_KEYS:
        raise ValueError(f"`card`={key!r} is not known; use {', '.join(CARD_KEYS)}.")
    if key == CPU:
        return {"hardware.device": "cpu"}
    return {"hardware.device": "auto", **card_settings(model, int(key))}


def card_of_this_machine() -> str:
    """The largest preset that the graphics card holds; "cpu" without a card."""
    gib = card_gib()
    if gib is None:
        return CPU
    # Cards report a little less than their name says.
    fitting = [key for key in CARD_KEYS[1:] if int(key) <= gib + 1]
    return fitting[-1] if fitting else CARD_KEYS[1]


def quality_choices() -> list[tuple[str, str]]:
    """(title, key) of the presets by quality."""
    return [(preset.title, key) for key, preset in QUALITY_PRESETS.items()]
