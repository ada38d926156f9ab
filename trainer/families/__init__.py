"""Base models by family, and how a name or a path becomes a loaded `VideoModel`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..paths import BUNDLED, MINI, bundled
from . import animatediff, modelscope, wan
from .base import Companions, Family, ModelError, VideoModel
from .record import Base

FAMILIES: list[Family] = [modelscope.FAMILY, wan.FAMILY, animatediff.FAMILY]
"""Every kind of base model; the first that recognises a path reads it."""
FOR_BEGINNERS: Family = animatediff.FAMILY
"""What the guide on the page leads to: it fits the smallest card."""

__all__ = [
    "FAMILIES",
    "FOR_BEGINNERS",
    "MINI",
    "Companions",
    "Family",
    "ModelError",
    "VideoModel",
    "card_settings",
    "check_companions",
    "family_named",
    "family_of",
    "load_model",
    "resolve_model",
    "sized",
    "skeleton_named",
    "token_counter",
]


def resolve_model(name: str) -> Path:
    """The file or folder that ``name`` means.

    "mini", or the path of a diffusers folder or of a checkpoint file. Raises ModelError.
    """
    path = bundled(name) or Path(name).expanduser().resolve()
    if not path.exists():
        raise ModelError(
            f"Base model '{name}' was not found at '{path}'. Use '{BUNDLED}' for the embedded "
            "model, the path of a diffusers folder, or that of a file: a Stable Diffusion 1.5 "
            "checkpoint, or a transformer of Wan (docs/models.md)."
        )
    return path


def family_of(path: Path) -> Family:
    """The family whose layout ``path`` has; raises ModelError when none fits."""
    for family in FAMILIES:
        if family.matches(path):
            return family
    titles = ", ".join(family.title for family in FAMILIES)
    if path.is_file():
        raise ModelError(
            f"'{path}' is not a weights file. A Stable Diffusion 1.5 checkpoint ends in "
            ".safetensors or .ckpt."
        )
    raise ModelError(
        f"'{path}' is not a text-to-video model that this version supports ({titles}): its "
        "unet/config.json is missing or names another class. Choose the folder that contains "
        "unet/, vae/, text_encoder/, tokenizer/ and scheduler/."
    )


def family_named(name: str) -> Family:
    """The family called ``name``; ValueError for another name."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"`family`={name!r} is not known; use {known}.")


def sized(name: str) -> tuple[Family, Base | None]:
    """The family called ``name``, or the family of a published model that differs in size from the
    others, such as wan-14b, with that model; ValueError for another name.
    """
    for family in FAMILIES:
        for base in family.bases:
            if base.name == name and base.skeleton is not None:
                return family, base
    return family_named(name), None


def skeleton_named(name: str, device: torch.device | str = "meta") -> VideoModel:
    """The `Family.skeleton` of a name that `sized` takes."""
    family, base = sized(name)
    return (base and base.skeleton or family.skeleton)(device)


def card_settings(model: str, gigabytes: int) -> dict[str, Any]:
    """Settings, by dotted name, for base model ``model`` on a card of ``gigabytes``.

    ``model`` is a path, or a name that `sized` takes in place of one. Empty for a model that brings
    its own settings, such as the embedded one: it fits everywhere. Raises ValueError for a size
    without a preset, ModelError for a model that is not there.
    """
    names = {f.name for f in FAMILIES} | {b.name for f in FAMILIES for b in f.bases if b.skeleton}
    path = None if model in names else resolve_model(model)
    if path is None:
        family, base = sized(model)
    else:
        family = family_of(path)
        base = next((b for b in family.bases if b.name == family.base_at(path)), None)
    cards = base.cards if base is not None and base.cards else family.cards
    presets = {preset.gigabytes: preset.settings for preset in cards}
    if gigabytes not in presets:
        raise ValueError(
            f"`card`={gigabytes} GB has no preset; use {', '.join(map(str, presets))}: the largest "
            "that your card's memory allows."
        )
    brings_its_own = path is not None and (path / "mcm.json").is_file()
    return {} if brings_its_own else presets[gigabytes]


def load_model(
    name: str, dtype: torch.dtype = torch.float32, **companions: Path | None
) -> VideoModel:
    """Load base model ``name`` ("mini" or a path), frozen, on the CPU.

    ``companions`` are the paths of its `Companions`, where it takes any. Raises ModelError, also
    for one that it does not take.
    """
    path, beside = resolve_model(name), Companions(**companions)
    family = family_of(path)
    check_companions(family, path, beside)
    return family.load(path, dtype, beside)


def check_companions(family: Family, path: Path, companions: Companions) -> None:
    """Raise ModelError for a companion that models of ``family`` have no use for."""
    for name in companions.given():
        if name not in family.takes:
            error = ModelError(
                f"'{path}' is a base model of {family.title} and takes no `{name}`; leave it out."
            )
            error.part = name
            raise error


@lru_cache(maxsize=4)
def token_counter(model: str) -> tuple[Callable[[str], int], int]:
    """Counter of a prompt's tokens and the number that is read, for the name or path of a model.

    Raises ModelError.
    """
    path = resolve_model(model)
    return family_of(path).counter(path)
