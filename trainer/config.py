"""Reading, writing and describing a `TrainConfig`; its fields are in `trainer.settings`.

A value is looked up in six places, later ones win: defaults, what the base model recommends (in
its ``mcm.json``), preset, memory preset (in GB of a card), TOML file, overrides.
"""

from __future__ import annotations

import difflib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import tomlkit
from annotated_types import Ge, Le, MultipleOf
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from tomlkit.exceptions import TOMLKitError

from .cards import memory_settings
from .paths import BUNDLED, bundled
from .runs.files import atomic_write
from .settings import Part, TrainConfig

_OFF_EXTRAS: dict[str, Any] = {
    "trajectory.real_min_timestep": 0,
    "trajectory.snr_power": 0.0,
    "trajectory.replay_probability": 0.0,
    "trajectory.few_step_bias": 0.0,
    "motion.target": "consistency",
    "motion.energy_weight": 0.0,
    "motion.anchor_weight": 0.0,
    "motion.self_anchor_weight": 0.0,
    "adversarial.mismatched_captions": False,
    "adversarial.caption_weight": 0.0,
    "adversarial.content_weight": 0.0,
    "adversarial.statistics_weight": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "recipe": {},
    # arXiv 2406.06890 and its reference code; lr 5e-6 is meant for long runs of large models.
    "paper": {
        **_OFF_EXTRAS,
        "trajectory.guidance_min": 5.0,
        "trajectory.guidance_max": 15.0,
        "trajectory.real_probability": 0.5,
        "motion.representation": "learned",
        "motion.huber_c": 0.001,
        "adversarial.weight_mode": "fixed",
        "adversarial.weight": 1.0,
        "lora.rank": 64,
        "lora.alpha": 64.0,
        "optim.lr": 5e-6,
        "optim.schedule": "constant",
    },
    # Latent consistency distillation alone: the baseline, and the warm start that all styles share.
    "lcm": {
        **_OFF_EXTRAS,
        "trajectory.real_probability": 1.0,
        "motion.representation": "raw",
        "adversarial.weight": 0.0,
        "warm_start": False,
    },
}


_NO_PATHS = frozenset({BUNDLED, "auto", "none", "clip", "dinov2", "efficientnet-lite0"})
_TEXTS_WITH_PATHS = ("model", "adversarial.features", "adversarial.clip")
"""Settings that take a name (one of the above) or a path."""


class ConfigError(ValueError):
    """A setting that cannot be used: names the field, what was given and what is allowed."""


@dataclass(frozen=True)
class ConfigField:
    """One setting, flat. ``type`` is bool, int, float, str, path, choice, ints, floats or strs."""

    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    multiple: int | None = None
    optional: bool = False

    @property
    def part(self) -> str:
        """Name of the table it is in; empty for a top field."""
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
    bool: "bool", int: "int", float: "float", str: "str", Path: "path",
    tuple[float, float]: "floats", tuple[str, ...]: "strs",
}  # fmt: skip


def _limit(info: FieldInfo, kind: type, attribute: str) -> Any:
    found = (getattr(limit, attribute) for limit in info.metadata if isinstance(limit, kind))
    return next(found, None)


def _record(name: str, info: FieldInfo) -> ConfigField:
    kind: Any = info.annotation
    optional = type(None) in get_args(kind)
    if optional:
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return ConfigField(
        name=name,
        type="choice" if choices else _TYPES.get(kind, "ints"),
        default=info.default,
        help=info.description or "",
        choices=choices,
        minimum=_limit(info, Ge, "ge"),
        maximum=_limit(info, Le, "le"),
        multiple=_limit(info, MultipleOf, "multiple_of"),
        optional=optional,
    )


def _part_of(info: FieldInfo) -> type[Part] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Part) else None


@lru_cache(maxsize=1)
def _records() -> Mapping[str, ConfigField]:
    flat: dict[str, ConfigField] = {}
    for name, info in TrainConfig.model_fields.items():
        part = _part_of(info)
        if part is None:
            flat[name] = _record(name, info)
        else:
            inner = part.model_fields.items()
            flat |= {f"{name}.{key}": _record(f"{name}.{key}", sub) for key, sub in inner}
    return MappingProxyType(flat)


def fields() -> Iterator[ConfigField]:
    """Every setting in the order of the file, with dotted names such as ``motion.huber_c``."""
    return iter(_records().values())


def load_config(
    file: Path | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    memory: int | None = None,
) -> TrainConfig:
    """Defaults < base model < preset < ``memory`` < TOML ``file`` < ``overrides`` (dotted names).

    Raises `ConfigError`.

    Without ``preset`` the one named in the overrides, else in the file, else ``recipe`` is taken.
    Text values (from a form or a command line) are converted. Relative paths stay as they are:
    `anchored` makes them absolute, and a run's own ``config.toml`` has no others.
    """
    overrides = dict(overrides or {})
    from_file = _flat(_read_toml(file)) if file is not None else {}
    _refuse_unknown(from_file, f"{file}: ")
    _refuse_unknown(overrides, "")
    chosen = preset or overrides.get("preset") or from_file.get("preset") or "recipe"
    if chosen not in PRESETS:
        raise ConfigError(_wrong("preset", chosen))
    model = overrides.get("model") or from_file.get("model") or TrainConfig().model
    base = {**recommended(str(model)), **PRESETS[chosen], **memory_settings(str(model), memory)}
    return _build({**base, **from_file, **overrides, "preset": chosen})


RECOMMENDABLE = ("bool", "int", "float", "choice", "ints", "floats")
"""Types of settings that a base model may recommend; its folder may come from anybody."""


def recommended(model: str) -> dict[str, Any]:
    """Settings that the base model asks for: "recommended" in its folder's ``mcm.json``, by dotted
    names.

    Empty for a folder without one, or one that is not there: loading the model says so later.
    """
    folder = bundled(model) or Path(model).expanduser()
    file = folder / "mcm.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("recommended", {})
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file}: is not a JSON object ({error}); copy it again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: `recommended` must be an object of settings by dotted name.")
    _refuse_unknown(found, f"{file}: ")
    kinds = {record.name: record.type for record in fields()}
    refused = [name for name in found if kinds[name] not in RECOMMENDABLE]
    if refused:
        raise ConfigError(
            f"{file}: `recommended` sets {refused[0]}, which only you may set: a base model "
            "recommends numbers and choices, never paths or texts. Remove the line."
        )
    return found


def with_overrides(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """A checked copy of ``config`` with some settings changed, given by dotted names."""
    _refuse_unknown(overrides, "")
    return _build({**_values(config), **overrides})


def anchored(config: TrainConfig, folder: Path) -> TrainConfig:
    """``config`` with every path absolute, relative ones taken from ``folder``."""
    values = _values(config)
    paths = {
        name: _anchor(values[name], folder)
        for name, record in _records().items()
        if record.type == "path" and values[name] is not None
    }
    texts = {
        name: str(_anchor(Path(values[name]).expanduser(), folder))
        for name in _TEXTS_WITH_PATHS
        if values.get(name) and values[name] not in _NO_PATHS
    }
    return with_overrides(config, {**paths, **texts})


def _anchor(path: Path, folder: Path) -> Path:
    return Path(os.path.abspath(folder / path))


def refuse_uneven_timesteps(config: TrainConfig) -> None:
    """Raise ConfigError for a number of trajectory timesteps that does not divide 1000: the last
    of them would not be 999, where sampling begins. Runs that began so go on.
    """
    count = config.trajectory.ddim_timesteps
    if 1000 % count:
        allowed = ", ".join(str(n) for n in range(8, 251) if not 1000 % n)
        raise ConfigError(
            f"`trajectory.ddim_timesteps`={count} is not allowed: it must divide 1000, or the "
            f"trajectory ends below timestep 999, where sampling begins; use {allowed}."
        )


def _read_toml(file: Path) -> dict[str, Any]:
    path = Path(file).expanduser()
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomlkit.parse(text).unwrap()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give an existing TOML file."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text; save it again with the encoding UTF-8."
        ) from error
    except TOMLKitError as error:
        raise ConfigError(
            f"{path}: is not valid TOML: {error}. Texts need quotes; write Windows paths with / or "
            "in 'single' quotes."
        ) from error


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": deeper for inner, deeper in value.items()}
        else:
            flat[key] = value
    return flat


def _values(config: TrainConfig) -> dict[str, Any]:
    """Flat values by dotted name."""
    return _flat(config.model_dump())


def _refuse_unknown(flat: Mapping[str, Any], where: str) -> None:
    known = _records()
    for name in flat:
        if name in known:
            continue
        if any(other.startswith(f"{name}.") for other in known):
            example = next(other for other in known if other.startswith(f"{name}."))
            raise ConfigError(f"{where}`{name}` is a table; set its fields, such as `{example}`.")
        near = _near(name)
        hint = f"; did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else "."
        raise ConfigError(f"{where}`{name}` is not a setting{hint}")


def _near(name: str) -> list[str]:
    """Up to three settings that ``name`` may have meant."""
    known = list(_records())
    leaf = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    similar = difflib.get_close_matches(name, known, n=3)
    leaves = {other.rpartition(".")[2]: other for other in known}
    slips = [leaves[other] for other in difflib.get_close_matches(leaf, leaves, n=2)]
    return list(dict.fromkeys(same + similar + slips))[:3]


def _build(flat: Mapping[str, Any]) -> TrainConfig:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, key = name.rpartition(".")
        (nested.setdefault(part, {}) if part else nested)[key] = value
    try:
        return TrainConfig.model_validate(nested)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _explain(detail: Any) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    names = [".".join(str(part) for part in detail["loc"][:count]) for count in (2, 1)]
    name = next((name for name in names if name in _records()), names[0])
    return _wrong(name, detail["input"], detail["msg"])


def _wrong(name: str, got: Any, problem: str = "") -> str:
    record = _records()[name]
    allowed = f"use {record.allowed}" if record.allowed else problem[:1].lower() + problem[1:]
    near = difflib.get_close_matches(str(got), record.choices, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"`{name}`={got!r} is not allowed; {allowed}{guess}. {record.help}"


def to_toml(config: TrainConfig) -> str:
    """All settings as TOML, each under its help; those that are not set as a comment."""
    document = tomlkit.document()
    values = _values(config)
    tables: dict[str, Any] = {"": document}
    for record in fields():
        if record.part not in tables:
            tables[record.part] = tomlkit.table()
            document.add(record.part, tables[record.part])
        _add(tables[record.part], record, values[record.name])
    return tomlkit.dumps(document)


def _add(table: Any, record: ConfigField, value: Any) -> None:
    limits = f" Allowed: {record.allowed}." if record.allowed else ""
    for line in textwrap.wrap(record.help + limits, 96):
        table.add(tomlkit.comment(line))
    key = record.name.rpartition(".")[2]
    if value is None:
        table.add(tomlkit.comment(f"{key} = (not set)"))
    else:
        table.add(key, _toml_value(value))
    table.add(tomlkit.nl())


def _toml_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def save_config(config: TrainConfig, path: Path) -> None:
    """Write ``config`` to a TOML file in one piece; an older file stays whole if that fails."""
    atomic_write(Path(path), to_toml(config).encode("utf-8"))
