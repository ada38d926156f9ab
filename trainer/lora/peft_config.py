"""Reads PEFT's config of a LoRA: its scaling, and whether it is more than a plain LoRA.

Only a plain LoRA can be applied here. A config can ask for more in many ways, and newer versions of
PEFT add others, so every entry that is not known to be harmless is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .pairs import LoraError

AlphaOf = Callable[[str, int], float]
"""``(module path, rank of its matrices) -> alpha``."""

READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias",
    "init_lora_weights",
}  # fmt: skip
HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
    "ensure_weight_tying", "adapter_name",
}  # fmt: skip
"""These entries say which layers have the LoRA, which its weights show, or how it was trained."""
STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "none")
"""Initialisations that leave the base weights alone. PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA and others
change them: such an adapter means nothing on the untouched base."""


def peft_alphas(config: Mapping[str, Any], where: str) -> AlphaOf:
    """PEFT's scaling as an alpha per module: `lora_alpha`, `alpha_pattern`, and rsLoRA's alpha /
    sqrt(rank). Asked for a rank that `r` and `rank_pattern` do not have there, it raises LoraError.

    Patterns follow `peft.utils.get_pattern_key`: the first one that matches the end of the path
    wins. Raises LoraError for adapters that are more than a plain LoRA (DoRA, biases, extra
    modules, PiSSA and its kin).
    """
    _check_plain_lora(config, where)
    alpha_for = _by_pattern(config, "lora_alpha", "alpha_pattern", where)
    rank_for = None if config.get("r") is None else _by_pattern(config, "r", "rank_pattern", where)
    root = bool(config.get("use_rslora"))

    def alpha_of(path: str, rank: int) -> float:
        if rank_for is not None and rank_for(path) != rank:
            raise LoraError(
                f"`{path}` has rank {rank}, but {where} says {rank_for(path):g}: the weights and "
                "their config do not belong together. Download or export both again."
            )
        alpha = alpha_for(path)
        return alpha * rank**0.5 if root else alpha

    return alpha_of


def _by_pattern(
    config: Mapping[str, Any], name: str, patterns_name: str, where: str
) -> Callable[[str], float]:
    """The number ``name`` of each module path, with the exceptions of ``patterns_name``."""
    default: Any = config.get(name)
    patterns = config.get(patterns_name) or {}
    if not isinstance(patterns, dict) or not all(
        _is_number(a) for a in (default, *patterns.values())
    ):
        raise LoraError(
            f"`{name}` or `{patterns_name}` of {where} is not a number: {default!r}. Export it "
            "again."
        )
    compiled = [(_pattern(key, patterns_name, where), float(v)) for key, v in patterns.items()]
    return lambda path: next((v for pattern, v in compiled if pattern.match(path)), float(default))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pattern(key: str, name: str, where: str) -> re.Pattern[str]:
    # Patterns come from a downloaded file: repetition could be written to take for ever, so it is
    # refused.
    if re.fullmatch(r"[\w.\\^$-]*", key) is None:
        raise LoraError(
            f"`{name}` {key!r} of {where} is not a plain module name; list the modules by name."
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise LoraError(f"`{name}` {key!r} of {where} is not valid ({error}).") from error


def _check_plain_lora(config: Mapping[str, Any], where: str) -> None:
    kind = str(config.get("peft_type", "LORA")).rsplit(".", 1)[-1].upper()
    start = str(config.get("init_lora_weights", True)).lower()
    others = [key for key, value in config.items() if key not in READ | HARMLESS and value]
    reasons = (
        (kind != "LORA", f"`peft_type`={kind}"),
        (config.get("bias", "none") != "none", f"`bias`={config.get('bias')!r}"),
        (start not in STARTS, f"`init_lora_weights`={start!r}, which changes the base"),
        (others, ", ".join(f"`{key}`={str(config[key])[:40]}" for key in others[:3])),
    )
    for wrong, what in reasons:
        if wrong:
            raise LoraError(
                f"{where} has {what}; only plain LoRA is supported. Convert or retrain it as LoRA."
            )
    if not isinstance(config.get("use_rslora") or False, bool):
        raise LoraError(
            f"`use_rslora` of {where} is {config['use_rslora']!r}; true or false is needed. Export "
            "it again."
        )
