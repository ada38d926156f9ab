"""Reading, writing and describing a `TrainConfig`; its fields are in `trainer.settings`.

A value can come from eight sources; later ones override earlier ones: defaults, what the base model
recommends (in its ``mcm.json``), preset of the method, of the card (in GB) and of the quality, the
settings that `memory` implies, TOML file, overrides.
"""

from __future__ import annotations

import difflib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError

from .files import atomic_write
from .paths import BUNDLED, bundled
from .settings import ConfigError, TrainConfig
from .settings.old import of_today
from .settings.presets import PRESETS, memory_values
from .settings.quality import quality_preset
from .settings.records import RECIPE, ConfigField, flat, nested, record, records

_NO_PATHS = frozenset({BUNDLED, "auto", "none", "clip", "dinov2", "efficientnet-lite0"})
_TEXTS_WITH_PATHS = ("model", "start_from", "adversarial.features", "adversarial.clip")
"""Settings that take a name (one of the above) or a path."""


def fields() -> Iterator[ConfigField]:
    """Every setting in the order of the file, with dotted names such as ``motion.huber_c``."""
    return iter(records().values())


def load_config(
    file: Path | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    card: int | None = None,
    quality: str | None = None,
) -> TrainConfig:
    """Defaults < base model < preset < ``card`` < ``quality`` < TOML ``file`` < ``overrides``
    (dotted names).

    Raises `ConfigError`.

    Without ``preset`` the one named in the overrides, else in the file, else ``recipe`` is taken.
    Text values (from a form or a command line) are converted. Relative paths stay as they are:
    `anchored` makes them absolute, and a run's own ``config.toml`` has no others.
    """
    overrides = _known(overrides or {}, "")
    from_file = _known(flat(_read_toml(file)), f"{file}: ") if file is not None else {}
    given = {**from_file, **overrides}
    chosen = preset or given.get("preset") or record("preset").default
    if chosen not in PRESETS:
        raise ConfigError(_wrong("preset", chosen))
    model = str(given.get("model") or record("model").default)
    below = {
        **recommended(model),
        **PRESETS[chosen],
        **_of_card(model, card),
        **(quality_preset(quality).values if quality else {}),
    }
    return _build(below, {**given, "preset": chosen})


def _of_card(model: str, card: int | None) -> dict[str, Any]:
    if card is None:
        return {}
    from .families import card_settings  # PyTorch: only where a card is named

    return card_settings(model, card)


RECOMMENDABLE = ("bool", "int", "float", "choice", "ints")
"""Types of settings that a base model may recommend; its folder may be from an untrusted source."""


def recommended(model: str) -> dict[str, Any]:
    """Settings that the base model recommends: "recommended" in its folder's ``mcm.json``, by
    dotted names.

    Empty for a folder without one, or a missing folder, which loading the model reports later.
    """
    folder = bundled(model) or Path(model).expanduser()
    file = folder / "mcm.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("recommended", {})
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} is not a JSON object ({error}); copy it again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: `recommended` must be an object of settings by dotted name.")
    found = _known(found, f"{file}: ")
    kinds = {found.name: found.type for found in fields()}
    refused = [name for name in found if kinds[name] not in RECOMMENDABLE]
    if refused:
        raise ConfigError(
            f"{file}: `recommended` sets {refused[0]}, which only you may set: a base model "
            "recommends numbers and choices, never paths or texts. Remove the line."
        )
    return found


def with_overrides(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """A checked copy of ``config`` with some settings changed, given by dotted names."""
    changes = _known(overrides, "")
    follow = memory_values(config.memory)
    own = {n: v for n, v in values_of(config).items() if n not in follow or v != follow[n]}
    return _build({}, {**own, **changes})


def anchored(config: TrainConfig, folder: Path) -> TrainConfig:
    """``config`` with every path absolute, relative ones taken from ``folder``."""
    values = values_of(config)
    paths = {
        name: _anchor(values[name], folder)
        for name, found in records().items()
        if found.type == "path" and values[name] is not None
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
    """Raise ConfigError for a number of trajectory timesteps that does not divide 1000: the last of
    them would not be 999, where sampling begins. Existing runs with such a number may continue.
    """
    count = config.recipe.trajectory.ddim_timesteps
    if count is not None and 1000 % count:
        allowed = ", ".join(str(n) for n in range(8, 251) if not 1000 % n)
        raise ConfigError(
            f"`trajectory.ddim_timesteps`={count} is not allowed: it must divide 1000, so that the "
            f"trajectory reaches timestep 999, where sampling begins; use {allowed}, or leave it "
            "unset for the base model's own."
        )


def _read_toml(file: Path) -> dict[str, Any]:
    path = Path(file).expanduser()
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomlkit.parse(text).unwrap()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); choose an existing TOML file."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it with UTF-8 encoding.") from error
    except TOMLKitError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}. Put text in quotes; write Windows paths with / or "
            "in 'single' quotes."
        ) from error


def values_of(config: TrainConfig) -> dict[str, Any]:
    """Every value of ``config`` by dotted name."""
    return flat(config.model_dump())


def _known(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``given`` with current names; raises ConfigError for an unknown setting."""
    values, known = of_today(given, where), records()
    for name in values:
        if name in known:
            continue
        inside = (f.name for f in fields() if f"{f.path}.".startswith(f"{name}.") or f.part == name)
        if example := next(inside, None):
            raise ConfigError(
                f"{where}`{name}` is a group of settings; set one of them, such as `{example}`."
            )
        near = _near(name)
        hint = f"; did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else "."
        raise ConfigError(f"{where}`{name}` is not a setting{hint}")
    return values


def _near(name: str) -> list[str]:
    """Up to three settings that ``name`` may mean."""
    known = list(records())
    leaf = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    similar = difflib.get_close_matches(name, known, n=3)
    leaves = {other.rpartition(".")[2]: other for other in known}
    slips = [leaves[other] for other in difflib.get_close_matches(leaf, leaves, n=2)]
    return list(dict.fromkeys(same + similar + slips))[:3]


def _build(below: Mapping[str, Any], above: Mapping[str, Any]) -> TrainConfig:
    """The config from values by name; those in ``above`` override the settings that `memory`
    implies.
    """
    memory = {**below, **above}.get("memory", record("memory").default)
    try:
        values = {**below, **memory_values(str(memory)), **above}
        return TrainConfig.model_validate(nested(values))
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _explain(detail: Any) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    where = ".".join(map(str, detail["loc"])).removeprefix(RECIPE).split(".")
    names = [".".join(where[:count]) for count in (2, 1)]
    name = next((name for name in names if name in records()), names[0])
    return _wrong(name, detail["input"], detail["msg"])


def _wrong(name: str, got: Any, problem: str = "") -> str:
    found = record(name)
    allowed = f"use {found.allowed}" if found.allowed else problem[:1].lower() + problem[1:]
    near = difflib.get_close_matches(str(got), found.choices, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"`{name}`={got!r} is not allowed; {allowed}{guess}. {found.help}"


def to_toml(config: TrainConfig) -> str:
    """All settings as TOML, each with its help. Settings that are not set, or that follow `memory`,
    are comments.
    """
    tables: dict[str, Any] = {"": tomlkit.document()}
    follow = memory_values(config.memory)
    values = values_of(config)
    below = {**recommended(config.model), **PRESETS[config.preset]}
    for found in fields():
        where, value = found.path.rpartition(".")[0], values[found.name]
        if value is None and below.get(found.name) is not None:
            value = UNSET  # left out, it would come back as what lies below
        _add(
            _table(tables, where),
            found,
            value,
            found.name in follow and value == follow[found.name],
        )
    return tomlkit.dumps(tables[""])


def _table(tables: dict[str, Any], path: str) -> Any:
    if path not in tables:
        outer, _, key = path.rpartition(".")
        tables[path] = tomlkit.table()
        _table(tables, outer).add(key, tables[path])
    return tables[path]


def _add(table: Any, found: ConfigField, value: Any, follows: bool) -> None:
    limits = f" Allowed: {found.allowed}." if found.allowed else ""
    for line in textwrap.wrap(found.help + limits, 96):
        table.add(tomlkit.comment(line))
    key = found.name.rpartition(".")[2]
    if value is None:
        table.add(tomlkit.comment(f"{key} = (not set)"))
    elif follows:
        table.add(tomlkit.comment(f"{key} = {tomlkit.item(value).as_string()}  (as `memory` says)"))
    else:
        table.add(key, _toml_value(value))
    table.add(tomlkit.nl())


UNSET = "none"


def _toml_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def save_config(config: TrainConfig, path: Path) -> None:
    """Write ``config`` to a TOML file atomically; an existing file is kept if that fails."""
    atomic_write(Path(path), to_toml(config).encode("utf-8"))
