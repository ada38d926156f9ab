"""Which card preset a base model gets: `settings.cards` by the model's family."""

from __future__ import annotations

from typing import Any

from .settings.cards import CARD_PRESETS, CARDS, card_presets


def card_settings(model: str, gigabytes: int | None) -> dict[str, Any]:
    """Settings, by dotted name, for base model ``model`` on a card of ``gigabytes``.

    ``model`` is a path, or the name of a family. Empty without a card size, and for a model that
    brings its own settings, such as the embedded one: it fits everywhere. Raises ValueError for a
    size without a preset, ModelError for a model that does not exist.
    """
    if gigabytes is None:
        return {}
    from .families import family_of, resolve_model  # imports PyTorch: only if a card is given

    path = None if model in CARD_PRESETS else resolve_model(model)
    presets = card_presets(model if path is None else family_of(path).name)
    if gigabytes not in CARDS:
        raise ValueError(
            f"`card`={gigabytes} GB has no preset; use {', '.join(map(str, CARDS))}: the largest "
            "that your card's memory allows."
        )
    brings_its_own = path is not None and (path / "mcm.json").is_file()
    chosen = next(p for p in presets if p.gigabytes == gigabytes)
    return {} if brings_its_own else chosen.settings
