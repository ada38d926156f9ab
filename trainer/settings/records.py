"""Every setting as a flat record, read from the fields of `TrainConfig`.

A setting's name is dotted, such as ``motion.huber_c``; ``path`` is where it lies in the config and
in its file, such as ``recipe.motion.huber_c``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, MultipleOf
from pydantic.fields import FieldInfo

from .base import Part
from .run import TrainConfig

RECIPE = "recipe."


@dataclass(frozen=True)
class ConfigField:
    """One setting, flat. ``type`` is bool, int, float, str, path, choice, ints or strs."""

    name: str
    path: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    multiple: int | None = None
    optional: bool = False
    expert: bool = False

    @property
    def part(self) -> str:
        """Name of the group it is in; empty for a top field."""
        return self.name.rpartition(".")[0]

    @property
    def allowed(self) -> str:
        """What may be given, in words; empty when every text or path is fine."""
        if self.choices:
            return ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            steps = f", a multiple of {self.multiple}" if self.multiple else ""
            return f"{_number(self.minimum)} to {_number(self.maximum)}{steps}"
        return {"bool": "true or false"}.get(self.type, "")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


_TYPES: dict[Any, str] = {
    bool: "bool", int: "int", float: "float", str: "str", Path: "path", tuple[str, ...]: "strs",
}  # fmt: skip


def _limit(info: FieldInfo, kind: type, attribute: str) -> Any:
    found = (getattr(limit, attribute) for limit in info.metadata if isinstance(limit, kind))
    return next(found, None)


def _record(path: str, info: FieldInfo, expert: bool) -> ConfigField:
    kind: Any = info.annotation
    optional = type(None) in get_args(kind)
    if optional:
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return ConfigField(
        name=path.removeprefix(RECIPE),
        path=path,
        type="choice" if choices else _TYPES.get(kind, "ints"),
        default=info.default,
        help=info.description or "",
        choices=choices,
        minimum=_limit(info, Ge, "ge"),
        maximum=_limit(info, Le, "le"),
        multiple=_limit(info, MultipleOf, "multiple_of"),
        optional=optional,
        expert=expert or path.startswith(RECIPE),
    )


def part_of(info: FieldInfo) -> type[Part] | None:
    """The group that a field holds; None for a plain setting."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Part) else None


def _walk(part: type[Part], prefix: str = "") -> Iterator[ConfigField]:
    for key, info in part.model_fields.items():
        inner = part_of(info)
        if inner is None:
            yield _record(f"{prefix}{key}", info, key in part.expert)
        else:
            yield from _walk(inner, f"{prefix}{key}.")


@lru_cache(maxsize=1)
def records() -> Mapping[str, ConfigField]:
    """Every setting by name, in the order of the file."""
    return MappingProxyType({found.name: found for found in _walk(TrainConfig)})


def record(name: str) -> ConfigField:
    return records()[name]


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": deeper for inner, deeper in flat(value).items()}
        else:
            found[key] = value
    return {name.removeprefix(RECIPE): value for name, value in found.items()}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name as nested tables, the other way round."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *parts, key = records()[name].path.split(".")
        table = tables
        for part in parts:
            table = table.setdefault(part, {})
        table[key] = value
    return tables
