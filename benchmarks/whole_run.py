"""A whole training run with random weights, from an image folder to the exported LoRA, each phase
timed.

    python benchmarks/gpu.py --family wan --whole-run                 on an NVIDIA card, real size
    python benchmarks/gpu.py --family wan --whole-run --tiny --json OUT   small, anywhere

Writes stand-ins for the published files, draws style images, and runs the command `python -m
trainer train` in this process: 128 clips of the library and 600 steps by the preset of a 16 GB
card. For each phase: seconds, peak memory, and the share of time that the card was busy (NVML, two
readings a second; None without a card). OUT is written anew every few seconds, for a lent card may
be gone soon; `finished` tells a whole run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from full_size import peak_gib
from gpu_setup import GIB, machine
from repository import ROOT
from stand_ins import write_wan
from step_parts import PartTimer

from minimaker.looks import STYLES, write_style_folder
from trainer.cli.main import main as trainer
from trainer.files import atomic_write
from trainer.runs.events import read_events
from trainer.runs.folder import Run

RESULT = ROOT / "benchmarks" / "results" / "whole_run.json"
WRITERS: dict[str, Callable[..., Path]] = {"wan": write_wan}
"""Writes the files of a base model into a folder: ``(folder, tiny, device)`` -> the model."""
PHASES = (
    ("trainer.readiness", "require_ready", "check"),
    ("trainer.distill.loop", "build_session", "preparation"),
    ("trainer.distill.session", "open_sources", "reading"),
    ("trainer.distill.sources", "encode_prompts", "text"),
    ("trainer.distill.session", "load_motions", "library"),
    ("trainer.distill.distiller.Distiller", "step", "steps"),
    ("trainer.distill.preview.Previewer", "make", "previews"),
    ("trainer.distill.loop", "save_checkpoint", "checkpoints"),
    ("trainer.distill.loop", "export_run", "export"),
)
"""What is timed: where, which function of the trainer, and as which phase."""
OTHER = "other"
STEPS, CLIPS, IMAGES, SIDE = 600, 128, 48, 512
GOAL_MINUTES = 45
SMALL: dict[str, Any] = {
    "data.frames": 5, "data.height": 32, "data.width": 32, "data.batch-size": 2,
    "data.min-side": 16, "data.library-steps": 4, "trajectory.ddim-timesteps": 8, "lora.rank": 2,
    "preview.steps": "1", "preview.teacher-steps": 2, "preview.count": 1, "steps": 2,
    "data.library-clips": 2, "hardware.gradient-checkpointing": "true",
}  # fmt: skip
READ_SECONDS, WRITE_SECONDS = 0.5, 10.0


class Watch(PartTimer):
    """Times the phases of a run, with the peak of memory and the card's busy share of each."""

    def __init__(self, busy: Callable[[], int] | None) -> None:
        super().__init__()
        self.busy = busy
        self.readings: dict[str, list[int]] = defaultdict(list)
        self.peaks: dict[str, int] = defaultdict(int)

    def _switch(self) -> None:
        super()._switch()
        if self._open and torch.cuda.is_available():
            phase = self._open[-1]
            self.peaks[phase] = max(self.peaks[phase], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> None:
        """Note how busy the card is in the phase that is open."""
        if self.busy is not None and self._open:
            self.readings[self._open[-1]].append(self.busy())

    def rows(self) -> list[dict[str, Any]]:
        """The phases in the order in which they began."""
        on_card = torch.cuda.is_available()
        return [
            {
                "phase": phase, "seconds": seconds,
                "peak_gib": self.peaks[phase] / GIB if on_card else None,
                "busy": share(self.readings.get(phase, [])),
            }
            for phase, seconds in list(self.spent.items())
        ]  # fmt: skip

    @contextmanager
    def over(self, write: Callable[[], None]) -> Iterator[None]:
        """Inside, the trainer's functions are timed, the card is read and ``write`` is called."""
        over = threading.Event()

        def follow() -> None:
            count = 0
            while not over.wait(READ_SECONDS):
                count += 1
                self.read()
                if count % int(WRITE_SECONDS / READ_SECONDS) == 0:
                    write()

        thread = threading.Thread(target=follow, daemon=True)
        with ExitStack() as patches:
            for place, name, phase in PHASES:
                patches.enter_context(self.wrap(owner(place), name, phase, outermost=False))
            patches.enter_context(self.part(OTHER))
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()


def owner(place: str) -> Any:
    """The module, or the class in one, called ``place``."""
    module, _, name = place.rpartition(".")
    if name[0].isupper():
        return getattr(importlib.import_module(module), name)
    return importlib.import_module(place)


def share(readings: list[int]) -> float | None:
    return mean(readings) / 100 if readings else None


def utilisation() -> Callable[[], int] | None:
    """Reads the percentage of time that the card computed lately; None where nothing can."""
    if not torch.cuda.is_available():
        return None
    try:
        torch.cuda.utilization()
    except (ImportError, RuntimeError):  # without the package that PyTorch asks NVML by
        return _by_command if shutil.which("nvidia-smi") else None
    return torch.cuda.utilization


def _by_command() -> int:
    asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return int(subprocess.run(asked, capture_output=True, text=True).stdout.split()[0])


def whole_run(options: argparse.Namespace, device: torch.device) -> int:
    """Train as the command line does and write what it took to ``options.json``."""
    family = options.family[0]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = WRITERS[family](folder / "models", options.tiny, device)
        images, side = (12, 64) if options.tiny else (IMAGES, SIDE)
        write_style_folder(folder / "images", STYLES["poster"], images, side, seed=0)
        run = Run(folder / "run")
        watch = Watch(utilisation())

        def write(finished: bool = False) -> None:
            about = {"family": family, "tiny": options.tiny, "finished": finished}
            found = about | measured(watch, run) | {"machine": machine(device)}
            found["date"] = datetime.date.today().isoformat()
            atomic_write(options.json, (json.dumps(found, indent=1) + "\n").encode("utf-8"))

        with watch.over(write):
            failed = trainer(["train", *flags(options, folder, model, device)])
        write(finished=not failed)
        print(table(watch), end="")
    return failed


def flags(
    options: argparse.Namespace, folder: Path, model: Path, device: torch.device
) -> list[str]:
    """What a user types after ``train``."""
    given: dict[str, Any] = {
        "model": model, "images": folder / "images", "run": folder / "run",
        "data.cache": folder / "cache", "adversarial.features": options.features,
        "hardware.device": device.type, "start-from": "none",
    }  # fmt: skip
    if options.tiny:
        given |= SMALL
    else:
        given |= {"card": options.card, "steps": STEPS, "data.library-clips": CLIPS}
    for name, value in (("steps", options.steps), ("data.library-clips", options.clips)):
        given |= {name: value} if value else {}
    return [f"--{name}={value}" for name, value in given.items()]


def measured(watch: Watch, run: Run) -> dict[str, Any]:
    """What is known of the run by now."""
    phases = watch.rows()
    seconds = sum(row["seconds"] for row in phases)
    readings = [value for values in list(watch.readings.values()) for value in values]
    steps = read_events(run.events_path, "step")
    peaks = [row["peak_gib"] for row in phases if row["peak_gib"] is not None]
    exported = run.export_path
    return {
        "minutes": seconds / 60, "goal_minutes": GOAL_MINUTES, "phases": phases,
        "peak_gib": max(peaks, default=None), "main_memory_gib": peak_gib(),
        "busy": share(readings), "steps": len(steps),
        "skipped": len(read_events(run.events_path, "skipped")),
        "settings": run.config_path.read_text("utf-8") if run.config_path.is_file() else None,
        "lora_bytes": exported.stat().st_size if exported.is_file() else None,
    }  # fmt: skip


def table(watch: Watch) -> str:
    """The phases as Markdown."""
    lines = ["| phase | seconds | peak memory, GiB | card busy |", "|---|---|---|---|"]
    for row in watch.rows():
        peak, busy = row["peak_gib"], row["busy"]
        memory = "" if peak is None else f"{peak:.1f}"
        shown = "" if busy is None else f"{100 * busy:.0f} %"
        lines.append(f"| {row['phase']} | {row['seconds']:.1f} | {memory} | {shown} |")
    lines.append(f"| all | {sum(watch.spent.values()):.1f} | | |")
    return "\n".join(lines) + "\n"
