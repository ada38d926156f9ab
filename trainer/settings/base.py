"""Base of all settings groups: frozen, strict about names, and able to read text from a form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

UserPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


class Part(BaseModel):
    """A frozen group of settings; text from a form or a shell becomes the field's own type."""

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
