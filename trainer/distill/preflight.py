"""Two real steps and one real preview, measured: does the run fit, and how long will it take?"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..config import TrainConfig, refuse_uneven_timesteps
from ..runs.events import plain
from ..runs.guards import NanGuard
from ..runs.progress import RunLog, forget_peak, peak_gib
from .distiller import Distiller
from .estimate import estimate
from .export import preview_prompts
from .loop import make_accelerator
from .preview import Previewer
from .session import build_session

GIB = 1 << 30
STEPS = 2
HEADROOM = 0.9
"""Part of the device's memory that a run may take."""


@dataclass(frozen=True)
class PreflightReport:
    """What was measured. Memory in GiB, times in seconds, disk in bytes."""

    device: str
    memory_gib: float
    available_gib: float
    seconds_per_step: float
    preview_seconds: float
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
            f"Time            {self.seconds_per_step:.2f} s a step, {self.preview_seconds:.1f} s "
            "a preview, "
            f"about {self.total_seconds / 60:.1f} minutes in all",
            f"Disk            {self.disk_bytes / 2**20:.0f} MiB needed, "
            f"{self.disk_free / 2**30:.1f} GiB free",
            "The run fits." if self.fits else "The run does NOT fit.",
        ]
        return "\n".join(lines + [f"Try: {hint}" for hint in self.advice])


def preflight(config: TrainConfig) -> PreflightReport:
    """Build the session of ``config``, take two steps, make one preview, and measure both.

    An out-of-memory error of the device becomes a report that does not fit, with the memory that
    shapes alone ask for (`estimate`) and with advice. Raises what `build_session` raises.
    """
    refuse_uneven_timesteps(config)
    forget_peak()
    accelerator = make_accelerator(config)
    log = RunLog(None)
    try:
        session = build_session(config, accelerator, log, lambda what, done, total: None)
        distiller = Distiller(session, NanGuard())
        distiller.step(0)  # the first step also pays for allocations
        begun = time.monotonic()
        for step in range(1, STEPS):
            distiller.step(step)
        per_step = (time.monotonic() - begun) / (STEPS - 1)
        preview = _time_preview(
            Previewer(session, preview_prompts(session), config.data.library_guidance + 1)
        )
    except torch.cuda.OutOfMemoryError:
        needed = max(estimate(config).gib, _available_gib(accelerator.device))
        return _report(config, accelerator.device, needed, 0.0, 0.0, 0)
    tensors = [t for group in distiller.tensors().values() for t in group.values()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    size += 2 * sum(p.numel() * 4 for p in session.parameters)  # AdamW keeps two moments
    return _report(
        config, accelerator.device, _peak_gib(accelerator.device), per_step, preview, size
    )


def _time_preview(previewer: Previewer) -> float:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        previewer.make(Path(folder))
    return time.monotonic() - begun


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return peak_gib()


def _available_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / GIB


def _report(
    config: TrainConfig,
    device: torch.device,
    memory: float,
    per_step: float,
    preview: float,
    checkpoint: int,
) -> PreflightReport:
    previews = config.steps // config.preview.every + 1 if config.preview.every else 0
    total = config.steps * per_step
    if config.minutes is not None:
        total = min(total, 60 * config.minutes)
    place = config.run.absolute()
    while not place.exists():
        place = place.parent
    available = _available_gib(device)
    tight = memory > HEADROOM * available
    return PreflightReport(
        device=str(device),
        memory_gib=memory,
        available_gib=available,
        seconds_per_step=per_step,
        preview_seconds=preview,
        total_seconds=total + previews * preview,
        checkpoint_bytes=checkpoint,
        disk_bytes=(config.checkpoint.keep + 1) * checkpoint + (8 << 20) * max(previews, 1),
        disk_free=shutil.disk_usage(place).free,
        advice=tuple(_advice(config)) if tight else (),
    )


def _advice(config: TrainConfig) -> list[str]:
    """What saves memory, strongest first, leaving out what is already set."""
    hints = []
    if not config.hardware.gradient_checkpointing:
        hints.append("--hardware.gradient-checkpointing true")
    if config.data.batch_size > 1:
        hints.append(
            f"--data.batch-size {max(1, config.data.batch_size // 2)} --optim.accumulation 2"
        )
    if not config.hardware.offload_idle:
        hints.append("--hardware.offload-idle true")
    if not config.optim.offload and config.optim.optimizer == "adamw":
        hints.append("--optim.offload true, or --optim.optimizer adamw8bit with bitsandbytes")
    hints.append("--memory 8 (or 12, 16, 24, 48): a preset for a card of so many GB")
    hints.append("a smaller --data.height and --data.width, or fewer --data.frames")
    return hints
