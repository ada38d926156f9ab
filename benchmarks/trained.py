"""A training run of a benchmark: taken where it has finished, continued, or made now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config import load_config
from trainer.distill.loop import train
from trainer.runs.folder import Run
from trainer.runs.state import read_state


def trained(path: Path, settings: Mapping[str, Any]) -> Path:
    """The LoRA of the run in ``path``, a new one with ``settings`` and no previews. Raises
    SystemExit when it was stopped.
    """
    run = Run(path)
    begun = run.config_path.is_file()
    if begun and run.export_path.is_file() and read_state(run).status == "finished":
        return run.export_path
    if not begun:
        run = Run.create(path, load_config(overrides={**settings, "run": path, "preview.every": 0}))
    state = train(run, None, resume=begun)
    if state.status != "finished":
        raise SystemExit(f"{path.name}: stopped at step {state.step}; run again to continue.")
    return run.export_path
