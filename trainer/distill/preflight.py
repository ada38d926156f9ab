"""Two real steps and one real preview, measured: does the run fit, and how long will it take?

Of the base model's example clips only one or two are made. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from ..config import TrainConfig, refuse_uneven_timesteps, with_overrides
from ..models.weights import shapes_only
from ..runs.events import plain
from ..runs.guards import NanGuard
from .distiller import Distiller
from .estimate import HEADROOM, estimate, memory_advice
from .loop import make_accelerator
from .preview import Previewer, preview_prompts
from .session import build_session

GIB = 1 << 30
STEPS = 2
CLIPS = 2
STAGES = 5
_LINUX_PEAK = Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """Peak memory in GiB, seconds of one library clip, one step and one preview, bytes of a
    checkpoint and of a library clip.
    """

    memory_gib: float
    clip_seconds: float = 0.0
    seconds_per_step: float = 0.0
    preview_seconds: float = 0.0
    checkpoint_bytes: int = 0
    clip_bytes: int = 0


@dataclass(frozen=True)
class PreflightReport:
    """What was measured. Memory in GiB, times in seconds, disk in bytes."""

    device: str
    memory_gib: float
    available_gib: float
    seconds_per_step: float
    preview_seconds: float
    library_seconds: float
    library_bytes: int
    total_seconds: float
    checkpoint_bytes: int
    disk_bytes: int
    disk_free: int
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return (
            self.memory_gib <= HEADROOM * self.available_gib and self.disk_bytes <= self.disk_free
        )

    def to_json(self) -> dict[str, Any]:
        """The measurements and ``fits`` as strict JSON takes them; None for an unknown memory."""
        return plain({**asdict(self), "fits": self.fits})

    def text(self) -> str:
        lines = [
            f"Device          {self.device}",
            f"Peak memory     {self.memory_gib:.2f} of {self.available_gib:.1f} GiB",
            f"Time            {self.seconds_per_step:.2f} s per step, {self.preview_seconds:.1f} s "
            f"per preview, about {self.total_seconds / 60:.1f} minutes in all",
            f"Example clips   about {self.library_seconds / 60:.1f} minutes and "
            f"{self.library_bytes / 2**20:.0f} MiB more, once for all styles of this model",
            f"Disk            {self.disk_bytes / 2**20:.0f} MiB needed, "
            f"{self.disk_free / 2**30:.1f} GiB free",
            "The run fits." if self.fits else "The run does NOT fit.",
        ]
        return "\n".join(lines + [f"Try: {hint}" for hint in self.advice])


class _Stages:
    """Says where the check is, and how long the base model took for one clip."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._number = 0
        self._last = time.monotonic()
        self._each: dict[str, float] = {}

    @property
    def clip_seconds(self) -> float:
        """Of a clip, its beginning included where that is made by itself."""
        return sum(self._each.values())

    def next(self, text: str) -> None:
        self._number += 1
        self._say(f"[{self._number}/{STAGES}] {text}")

    def log(self, message: str) -> None:
        self._last = time.monotonic()

    def progress(self, what: str, done: int, total: int) -> None:
        if not done:  # a wait begins, or goes on
            return
        self._each[what] = (time.monotonic() - self._last) / done
        self._say(f"[{self._number}/{STAGES}] {what}: {done} of {total}")


def preflight(config: TrainConfig, say: Callable[[str], None] = print) -> PreflightReport:
    """Build the session of ``config`` with one or two clips of its library, take two steps, make
    one preview, and measure each. ``say`` receives each stage as "[2/5] ...".

    An out-of-memory error of the device becomes a report that does not fit, with the memory that
    shapes alone ask for (`estimate`) and with advice. Raises what `build_session` raises.
    """
    refuse_uneven_timesteps(config)
    accelerator = make_accelerator(config)
    stages = _Stages(say)
    _forget_peak(accelerator.device)
    with tempfile.TemporaryDirectory() as cache:
        few = {"data.library_clips": min(CLIPS, config.data.library_clips), "data.cache": cache}
        try:
            measured = _measure(with_overrides(config, few), accelerator, stages)
        except torch.cuda.OutOfMemoryError:
            with shapes_only():
                needed = max(estimate(config).gib, _available_gib(accelerator.device))
            measured = Measured(memory_gib=needed)
    return _report(config, accelerator.device, measured)


def _measure(config: TrainConfig, accelerator: Accelerator, stages: _Stages) -> Measured:
    stages.next("Loading the model and making one or two example clips")
    session = build_session(config, accelerator, stages.log, stages.progress)
    distiller = Distiller(session, NanGuard())
    stages.next("A first training step")
    distiller.step(0)  # the first step also pays for allocations
    stages.next("A second training step, timed")
    begun = time.monotonic()
    for step in range(1, STEPS):
        distiller.step(step)
    per_step = (time.monotonic() - begun) / (STEPS - 1)
    stages.next("One preview")
    shown = preview_prompts(session.config, session.prompts)
    preview = _time_preview(Previewer(session, shown))
    tensors = [t for group in distiller.tensors().values() for t in group.values()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    size += 2 * sum(p.numel() * 4 for p in session.parts.parameters)  # AdamW keeps two moments
    stages.next("Done")
    peak = _peak_gib(accelerator.device)
    clip = 0
    if config.videos is None:
        clip = session.plan.clip_bytes(session.sources.latent_shape)
    return Measured(peak, stages.clip_seconds, per_step, preview, size, clip)


def _forget_peak(device: torch.device) -> None:
    """Count the peak from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _LINUX_PEAK.exists():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _time_preview(previewer: Previewer) -> float:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        previewer.make(Path(folder))
    return time.monotonic() - begun


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    if _LINUX_PEAK.exists():
        lines = _LINUX_PEAK.read_text(encoding="utf-8").splitlines()
        found = next((line.split()[1] for line in lines if line.startswith("VmHWM")), None)
        if found is not None:
            return int(found) * 1024 / GIB
    info = psutil.Process().memory_info()
    return getattr(info, "peak_wset", info.rss) / GIB


def _available_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / GIB


def _report(config: TrainConfig, device: torch.device, found: Measured) -> PreflightReport:
    previews = config.steps // config.preview.every + 1 if config.preview.every else 0
    total = config.steps * found.seconds_per_step
    if config.minutes is not None:
        total = min(total, 60 * config.minutes)
    place = config.run.absolute()
    while not place.exists():
        place = place.parent
    available = _available_gib(device)
    tight = found.memory_gib > HEADROOM * available
    kept = (config.checkpoint.keep + 1) * found.checkpoint_bytes
    return PreflightReport(
        device=str(device),
        memory_gib=found.memory_gib,
        available_gib=available,
        seconds_per_step=found.seconds_per_step,
        preview_seconds=found.preview_seconds,
        library_seconds=config.data.library_clips * found.clip_seconds,
        library_bytes=config.data.library_clips * found.clip_bytes,
        total_seconds=total + previews * found.preview_seconds,
        checkpoint_bytes=found.checkpoint_bytes,
        disk_bytes=kept + (8 << 20) * max(previews, 1),
        disk_free=shutil.disk_usage(place).free,
        advice=tuple(memory_advice(config)) if tight else (),
    )
