"""Base of all settings groups: frozen, strict about names, and able to read text from a form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

from PIL import ImageColor
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

UserPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


def colour(text: str) -> str:
    """ "#rrggbb" of any way to write a colour; the colour picker of the page gives fractions."""
    whole = re.sub(r"(\d+)\.\d+(?=\s*,)", r"\1", text.strip())
    opaque = re.sub(r"^rgba\((.*),[^,]*\)$", r"rgb(\1)", whole)
    try:
        red, green, blue = ImageColor.getrgb(opaque)[:3]
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not a colour; use #rrggbb, such as #ffffff, or a name, such as black"
        ) from error
    return f"#{red:02x}{green:02x}{blue:02x}"


Colour = Annotated[str, AfterValidator(colour)]


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field, its value and what is allowed."""


class Part(BaseModel):
    """A frozen group of settings; text from a form or a shell becomes the field's own type.

    ``expert`` names those that are shown on request only.
    """

    expert: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: cls._from_text(key, value) for key, value in values.items()}

    @classmethod
    def _from_text(cls, key: str, value: Any) -> Any:
        """``""`` and ``"none"`` are None where allowed; lists split at commas (texts at lines)."""
        field = cls.model_fields.get(key)
        if field is None or not isinstance(value, str):
            return value
        if type(None) in get_args(field.annotation) and value.strip().lower() in ("", "none"):
            return None
        if get_origin(field.annotation) is tuple:
            of_text = str in get_args(field.annotation)
            parts = value.splitlines() if of_text else value.strip(" ()[]").split(",")
            return tuple(part.strip() for part in parts if part.strip())
        return value
