"""The form's last state, stored on the server for reloads and other browsers."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.config import ConfigError, TrainConfig
from trainer.files import atomic_write
from trainer.mini.words import STYLES, style_folder
from trainer.paths import BUNDLED

from .form import CPU, NAMED, NAMES, PATHS, base_values, card_of_this_machine, to_form
from .places import PlaceError, Places

FIRST_NAME = "my-style"
FIRST_QUALITY = "quick"
OLD_QUALITY = {"good": "normal", "thorough": "best"}


@dataclass
class Draft:
    """Component ``values`` by field, the run's ``name``, and the choosers without a field."""

    values: dict[str, Any] = field(default_factory=dict)
    name: str = FIRST_NAME
    card: str = CPU
    quality: str = FIRST_QUALITY

    @property
    def choosers(self) -> tuple[str, str, str, str, str]:
        values = self.values
        return values["model"], values["preset"], self.card, self.quality, values["memory"]


class Drafts:
    """Loads and saves the one draft of this server."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._path = places.web / "draft.json"
        self._lock = threading.Lock()

    def load(self) -> Draft:
        """The saved draft; on a first start the mini model and an example style."""
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            known = {n: v for n, v in saved["values"].items() if n in NAMES and _is_plain(v)}
            # Names of earlier versions.
            saved = {"card": saved.get("memory"), **saved}
            saved["quality"] = OLD_QUALITY.get(saved["quality"], saved["quality"])
            texts = {key: str(saved[key]) for key in ("name", "card", "quality")}
            base = base_values(BUNDLED, "recipe", CPU, FIRST_QUALITY)
            draft = Draft({**base, **known}, **texts)
            base_values(*draft.choosers[:-1])
            return draft
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self._first()

    def _first(self) -> Draft:
        card = card_of_this_machine()
        values = base_values(BUNDLED, "recipe", card, FIRST_QUALITY)
        values["images"] = str(style_folder(STYLES[0]))
        return Draft(values, self._places.free_name(FIRST_NAME), card)

    def save(self, draft: Draft) -> None:
        """Keep the draft; the last one of several tabs wins."""
        content = {
            "values": draft.values, "name": draft.name,
            "card": draft.card, "quality": draft.quality,
        }  # fmt: skip
        with self._lock:
            self._places.web.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, ensure_ascii=False, indent=1)
            atomic_write(self._path, text.encode("utf-8"))

    def update(self, values: Mapping[str, Any]) -> None:
        """Change single values of the saved draft, such as the folder after an upload."""
        draft = self.load()
        draft.values.update(values)
        self.save(draft)

    def from_config(self, config: TrainConfig, name: str) -> tuple[Draft, list[str]]:
        """A draft of a loaded config, and what was left out because it is not on this machine."""
        values, left = to_form(config), []
        for key in PATHS:
            if values[key] and not self._is_here(values[key]):
                left.append(f"{key}: '{values[key]}' is not on this machine or may not be read")
                values[key] = ""
        for key, known in NAMED.items():
            if values[key] not in known and not self._is_here(values[key]):
                left.append(f"{key}: '{values[key]}' is not on this machine or may not be read")
                values[key] = known[0]
        if values["model"] not in {found.model for found in self._places.models()}:
            left.append(f"model: '{values['model']}' was not found here; {BUNDLED} is chosen")
            values["model"] = BUNDLED
        draft = self.load()
        return Draft(values, self._places.free_name(name), draft.card, draft.quality), left

    def _is_here(self, text: str) -> bool:
        try:
            return self._places.read(text).exists()
        except (PlaceError, ConfigError):
            return False


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
