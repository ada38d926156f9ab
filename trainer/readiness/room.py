"""Checks whether sizes, disk space and memory fit the settings."""

from __future__ import annotations

import importlib.util
import math
import shutil
from dataclasses import astuple
from pathlib import Path

import torch

from ..config import TrainConfig, with_overrides
from ..data.cache import ContentCache
from ..distill.estimate import HEADROOM, MemoryEstimate, estimate, memory_advice
from ..distill.plan import TeacherPlan
from ..distill.step import ANCHOR_POOL
from ..families import VideoModel
from ..models.weights import shapes_only
from .findings import Finding, State
from .torch_card import Machine

GIB = 1 << 30
SMALL_PIXELS = 1 << 19
"""Pixels in the clips of a step; below, a small model fits into any machine (measured: 4 GiB)."""
SMALL_MODEL = 50_000_000
PREVIEW_BYTES = 8 << 20
REPLAY_CLIPS = 256
LEAST_FREE = GIB // 4


def size_findings(config: TrainConfig, model: VideoModel) -> list[Finding]:
    """Checks for clip sizes that the model or a loss does not support."""
    data = config.data
    height, width = data.height or model.height, data.width or model.width
    frames = data.frames or model.frames
    try:
        model.latent_shape(frames, height, width)
    except ValueError as error:
        setting = "data.frames" if "`frames`" in str(error) else "data.height"
        return [Finding("Clip size", "bad", str(error), setting)]
    wrong = _sides(config, model, height, width)
    if data.frames_per_clip > frames:
        text = (
            f"`data.frames_per_clip`={data.frames_per_clip} is more than the {frames} frames of a "
            f"clip; use {frames} or less."
        )
        wrong.append(Finding("Clip size", "bad", text, "data.frames_per_clip"))
    return wrong or [_length(model, frames, f"{frames} frames of {width} x {height} px.")]


def _length(model: VideoModel, frames: int, size: str) -> Finding:
    """A warning about clips so short that no two latents can be compared."""
    lead, latents = model.codec.lead, _latents(model, frames)
    if latents > lead + 1 or not lead:
        return Finding("Clip size", "ok", size)
    text = (
        f"{size} Such a clip is {latents} latents, and motion is compared between the later ones; "
        "so there is little motion to learn. Use longer clips, such as `data.frames`="
        f"{next(n for n in model.family.frames if _latents(model, n) > lead + 1)} or more."
    )
    return Finding("Clip size", "warn", text, "data.frames")


def _latents(model: VideoModel, frames: int) -> int:
    return model.latent_shape(frames, model.height, model.width)[1]


def _sides(config: TrainConfig, model: VideoModel, height: int, width: int) -> list[Finding]:
    """The anchors compare squares of latent cells: sides must be multiples of those."""
    anchors = ("self_anchor_weight", "anchor_weight")
    used = next((name for name in anchors if getattr(config.recipe.motion, name)), None)
    if used is None:
        return []
    multiple = model.codec.factor * ANCHOR_POOL
    found = []
    for name, side in (("height", height), ("width", width)):
        if side % multiple:
            lower, upper = side // multiple * multiple, (side // multiple + 1) * multiple
            nearest = f"{lower} or {upper}" if lower else str(upper)
            text = (
                f"`data.{name}`={side} px is not a multiple of {multiple} px, which "
                f"`motion.{used}` needs; use {nearest}, or set `motion.{used}` to 0."
            )
            found.append(Finding("Clip size", "bad", text, f"data.{name}"))
    return found


def optimizer_finding(config: TrainConfig, machine: Machine) -> list[Finding]:
    """Whether the 8 bit optimizer can run, where it is asked for."""
    if config.optim.optimizer != "adamw8bit":
        return []
    if importlib.util.find_spec("bitsandbytes") is None:
        text = "'adamw8bit' needs the package bitsandbytes: `python -m pip install bitsandbytes`, "
    elif not machine.uses_card(config.hardware.device):
        text = "'adamw8bit' needs an NVIDIA card; "
    else:
        return []
    text += "or set `optim.optimizer` to adamw (with `optim.offload` true if memory is short)."
    return [Finding("Optimizer", "bad", text, "optim.optimizer")]


def is_small(config: TrainConfig, model: VideoModel) -> bool:
    """Whether a step needs so little memory that no estimate is needed."""
    data = config.data
    height, width = data.height or model.height, data.width or model.width
    pixels = data.batch_size * (data.frames or model.frames) * height * width
    return pixels <= SMALL_PIXELS and _numbers(model) <= SMALL_MODEL


def _numbers(model: VideoModel) -> int:
    return sum(parameter.numel() for parameter in model.network.parameters())


def step_memory(config: TrainConfig, model: VideoModel, machine: Machine) -> MemoryEstimate:
    """The estimate of one batch on the device that would be used; ``model`` is used up.

    It takes some seconds, so it is remembered in the cache for the same files and settings.
    """
    changes: dict[str, object] = {"optim.accumulation": 1}
    if not machine.sees:
        changes["hardware.device"] = "cpu"
    asked = with_overrides(config, changes)

    def compute() -> dict[str, torch.Tensor]:
        with shapes_only():
            found = estimate(asked, model)
        return {"bytes": torch.tensor(astuple(found))}

    cache = ContentCache(config.data.cache)
    key = cache.key("estimate with what waits", torch.__version__, *_what_counts(asked, model))
    return MemoryEstimate(*cache.fetch(key, compute)["bytes"].tolist())


def _what_counts(config: TrainConfig, model: VideoModel) -> tuple[str, ...]:
    """Settings and files that decide the memory of a step."""
    without = {"run", "images", "videos", "prompts", "trigger", "prompt_template", "steps",
               "minutes", "seed", "preview", "checkpoint"}  # fmt: skip
    settings = config.model_dump_json(exclude=without)
    texts = (config.start_from, config.recipe.adversarial.features)
    paths = (model.path, *config.companions.values(), *map(Path, texts))
    known = [p.expanduser() for p in paths if p is not None]
    stats = [(path, path.stat()) for path in known if path.exists()]
    videos = str(config.videos is None)
    return settings, videos, *(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in stats)


def memory_finding(config: TrainConfig, found: MemoryEstimate, machine: Machine) -> Finding:
    """``found`` against what the device has."""
    on_card = machine.uses_card(config.hardware.device)
    there = machine.card_gib if on_card else machine.ram_gib
    place = "the card" if on_card else "main memory"
    text = f"a training step needs about {found.gib:.1f} GiB; {place} has {there:.1f} GiB."
    state: State = "ok"
    if found.gib > HEADROOM * there:
        state = "bad" if found.gib > there else "warn"
        text += f" Try {memory_advice(config)[0]}."
    elif on_card and machine.ram_gib and found.waiting > HEADROOM * machine.ram_gib * GIB:
        state = "bad"
        text += (
            f" It also needs {found.waiting / GIB:.1f} GiB of the computer's RAM, which has "
            f"{machine.ram_gib:.1f} GiB: use an fp8 file of the base model, or lower "
            "`hardware.blocks_to_swap`."
        )
    setting = "memory" if state != "ok" else ""
    return Finding("Memory", state, text, setting)


def speed_finding(machine: Machine, config: TrainConfig) -> list[Finding]:
    """A warning about a large model without a graphics card."""
    if machine.uses_card(config.hardware.device) or machine.mps:
        return []
    text = "a training step of a model this large takes minutes on the CPU; use a graphics card."
    return [Finding("Speed", "warn", text)]


def disk_findings(
    config: TrainConfig, model: VideoModel, found: MemoryEstimate | None
) -> list[Finding]:
    """Room for the example clips (cache) and for checkpoints and previews (run folder)."""
    shape = _latent_shape(config, model)
    previews = config.steps // config.preview.every + 1 if config.preview.every else 1
    trained = 0 if found is None else found.trained
    checkpoint = 2 * trained + REPLAY_CLIPS * math.prod(shape) * 2
    run = previews * PREVIEW_BYTES + (config.checkpoint.keep + 1) * checkpoint
    places = [
        ("run folder", config.run, run),
        ("cache", ContentCache(config.data.cache).root, library_bytes(config, model)),
    ]
    return [_disk(name, place, needed) for name, place, needed in places]


def _latent_shape(config: TrainConfig, model: VideoModel) -> tuple[int, int, int, int]:
    data = config.data
    height, width = data.height or model.height, data.width or model.width
    return model.latent_shape(data.frames or model.frames, height, width)


def library_bytes(config: TrainConfig, model: VideoModel) -> int:
    """Bytes that the teacher's stored clips take."""
    if config.videos is not None:
        return 0
    shape = _latent_shape(config, model)
    return config.data.library_clips * TeacherPlan.of_model(config, model).clip_bytes(shape)


def _disk(name: str, place: Path, needed: int) -> Finding:
    existing = place.expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    text = f"up to {needed / GIB:.1f} GiB for the {name}; {free / GIB:.1f} GiB are free"
    if free < LEAST_FREE:
        return Finding(
            "Disk", "bad", f"{text} at {existing}: too little to start. Free some space."
        )
    if free < needed:
        more = "old runs and checkpoints are the largest" if name != "cache" else f"see {existing}"
        return Finding("Disk", "warn", f"{text}: the disk may fill up during training ({more}).")
    return Finding("Disk", "ok", f"{text}.")
