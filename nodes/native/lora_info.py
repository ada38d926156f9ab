"""What *MCM LoRA Info* says of a LoRA file: recommended settings, and a few lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .advice import SAMPLER, SCHEDULER
from .lora import (
    LoraSettings,
    metadata_of,
    plain_settings,
    read_or_why,
    resolve_lora,
    settings_of,
)

PLAIN = (
    "Not a few-step LoRA: it recommends no steps, CFG or size, and 'Load MCM LoRA' refuses it. "
    "Load it with ComfyUI's own LoRA loader (with AnimateDiff: before the motion module)."
)


def lora_info(name: str) -> tuple[LoraSettings, str]:
    """``(settings, summary)`` of LoRA ``name``; the summary is a few lines for people.

    Raises ValueError for a file that is missing or damaged. A LoRA that is not for few steps, also
    of a kind that only core's loader reads, has settings without values.
    """
    from ...trainer.lora.few_step import few_step_kind

    path = resolve_lora(name)
    found = read_or_why(path)
    if isinstance(found, str):
        return plain_settings(metadata_of(path)), "\n".join([f"{Path(name).stem}", PLAIN, found])
    settings, told = settings_of(found), found.metadata
    lines = [f"{told.get('modelspec.title') or Path(name).stem}: a LoRA for {_base_of(found)}"]
    plain = few_step_kind(found) is None
    lines += [PLAIN] if plain else _recommended(settings)
    lines += _file_lines(found, settings)
    if not plain and "mcm.version" not in told:
        lines.append("It has no metadata: these are the values of the official MCM LoRAs.")
    return settings, "\n".join(lines)


def _base_of(found: Any) -> str:
    from ...trainer.lora.match import describe_base, pair_widths

    return found.metadata.get("mcm.base_model") or describe_base(pair_widths(found.pairs))


def _recommended(settings: LoraSettings) -> list[str]:
    allowed = ", ".join(map(str, settings.steps_allowed))
    shift = settings.sampling.get("shift")
    half = (
        f"for the {settings.part} expert alone: it samples half of the steps (KSampler Advanced), "
        "the other expert the other half"
    )
    return [
        *([half] if settings.part else []),
        f"{settings.steps} steps (made for {allowed}), CFG {settings.guidance_scale:g}, sampler "
        f"{SAMPLER}, scheduler {SCHEDULER}, strength {settings.strength:g}"
        + (f", shift {shift:g}" if shift else ""),
        f"{settings.frames} frames of {settings.width} x {settings.height} pixels"
        + (f", {settings.fps} a second" if settings.fps else ""),
    ]


def _file_lines(found: Any, settings: LoraSettings) -> list[str]:
    from ...trainer.lora.inspect import HASH_WORDS

    told = found.metadata
    licence = told.get("modelspec.license") or told.get("mcm.base_license")
    return [
        f"trigger: {settings.trigger or 'none'}",
        f"licence: {licence or 'not stated'}",
        f"{found.format} format, {len(found.pairs)} layers, AutoV2 {found.hashes.autov2}, tensor "
        f"hash {HASH_WORDS[found.hash_ok]}",
    ]


def no_value(name: str, settings: LoraSettings) -> Any:
    """An output without a value: a node that is connected to it stops with this sentence, all
    others run.
    """
    from comfy_execution.graph_utils import ExecutionBlocker

    if settings.steps is not None:
        return ExecutionBlocker(
            f"'{name}' does not say this: only LoRAs for Wan have a shift, and only those of this "
            "trainer a frame rate. Leave the input of this node unconnected."
        )
    return ExecutionBlocker(
        f"'{name}' is not a few-step LoRA: it recommends no steps, CFG or size. Type the value "
        "here instead of connecting 'MCM LoRA Info', or choose a few-step LoRA there."
    )
