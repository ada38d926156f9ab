"""What all styles of an embedded model share: the few-step start and the trajectory library."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config import load_config
from trainer.distill.library import SHIPPED, ship_library
from trainer.distill.loop import train
from trainer.runs.folder import Run

WARM_START = "warm_start.safetensors"
SETTINGS: dict[str, Any] = {
    "data.library_clips": 96,
    "data.batch_size": 8,
    "trajectory.real_probability": 0.7,
    "optim.lr": 1e-3,
    "preview.every": 0,
}


def distil_start(model: Path, work: Path, steps: int) -> None:
    """The LoRA that every style of ``model`` begins from, written to its folder: plain consistency
    distillation, no images, no discriminator.
    """
    (model / WARM_START).unlink(missing_ok=True)
    folder = work / "warm-start"
    shutil.rmtree(folder, ignore_errors=True)
    own: Mapping[str, Any] = {"model": str(model), "run": folder, "steps": steps}
    run = Run.create(folder, load_config(preset="lcm", overrides={**SETTINGS, **own}))
    train(run, None)
    shutil.copyfile(run.export_path, model / WARM_START)


def roll_out_library(model: Path, work: Path) -> None:
    """The trajectory library that the recipe asks for, written to the folder ``model``."""
    file = model / SHIPPED
    file.unlink(missing_ok=True)
    config = load_config(overrides={"model": str(model), "data.cache": work / "library"})
    ship_library(config, file)
