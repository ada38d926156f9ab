"""Complete states to resume from: written to a temporary folder, then renamed, and checked by
sha256.

``checkpoints/step-000500/`` holds ``<group>.safetensors`` for weights, ``<name>.pt`` for optimizers
and random generators, ``state.json`` for everything plain, and ``manifest.json``, written last.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ..files import remove_folder, restore_set_aside, staged_folder, write_synced
from .folder import Run
from ..files import require_disk

_MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{6,})")
_NAME = re.compile(r"[a-z0-9_]+")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or cannot be saved."""


@dataclass(frozen=True)
class Checkpoint:
    """What was given to `save_checkpoint`; ``tensors`` by group and key."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    torch_state: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    run: Run,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 3,
    torch_state: Mapping[str, Any] | None = None,
    spare: int | None = None,
) -> Path:
    """Save the state after ``step`` steps and return its folder.

    ``torch_state`` takes optimizer and generator states: containers of tensors and plain values.
    The newest ``keep`` checkpoints stay, and that of step ``spare``. Later ones than ``step`` are
    deleted: they belong to a history that was left by resuming before them. Raises `DiskFullError`,
    `CheckpointError`.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"`keep`={keep}, `step`={step} is not allowed; use keep >= 1, step >= 0.")
    target = checkpoint_path(run, step)
    files = _serialise(tensors, state, torch_state or {})
    require_disk(run.checkpoints, sum(len(content) for content in files.values()))
    restore_set_aside(run.checkpoints)
    with staged_folder(target) as staged:
        listed = {}
        for name, content in files.items():
            write_synced(staged / name, content)
            listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"format": 1, "step": step, "created": time.time(), "files": listed}
        write_synced(staged / _MANIFEST, json.dumps(manifest, indent=1).encode("utf-8"))
    _prune(run, step, keep, spare)
    return target


def _serialise(
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    torch_state: Mapping[str, Any],
) -> dict[str, bytes]:
    """File contents by name, made in memory so that only our own writes can meet a full disk."""
    names = [*tensors, *torch_state]
    if bad := [name for name in names if not _NAME.fullmatch(name)]:
        raise CheckpointError(f"{bad[0]!r} cannot name a group; use a-z, 0-9 and _.")
    try:
        text = json.dumps(state, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"`state` must be plain JSON: {error}.") from error
    files = {"state.json": text.encode("utf-8")}
    for name, group in tensors.items():
        # Copies, because safetensors refuses tensors that share memory (tied weights).
        copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in group.items()}
        files[f"{name}.safetensors"] = dump_tensors(copies)
    for name, value in torch_state.items():
        _require_safe(value, name)
        buffer = io.BytesIO()
        torch.save(value, buffer)
        files[f"{name}.pt"] = buffer.getvalue()
    return files


def _require_safe(value: Any, where: str) -> None:
    """`CheckpointError` for what ``torch.load(weights_only=True)`` would refuse at resume."""
    if value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor):
        return
    if type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_safe(item, f"{where}[{index}]")
    elif type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_safe(item, f"{where}[{key!r}]")
    else:
        raise CheckpointError(
            f"{where} is a {type(value).__name__}; only tensors, numbers, texts and containers of "
            "them can be loaded again."
        )


def _folders(run: Run) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [(_FOLDER.fullmatch(entry.name), entry) for entry in run.checkpoints.iterdir()]
    return sorted((int(match[1]), entry) for match, entry in found if match)


def checkpoint_path(run: Run, step: int) -> Path:
    """Folder of the checkpoint after ``step`` steps, there or not."""
    return run.checkpoints / f"step-{step:06d}"


def checkpoint_steps(run: Run) -> list[int]:
    """Steps of all checkpoints in the run folder, ascending, whole or not."""
    return [step for step, _ in _folders(run)]


def _prune(run: Run, step: int, keep: int, spare: int | None) -> None:
    folders = _folders(run)
    kept = [number for number, _ in folders if number <= step][-keep:]
    for number, entry in folders:
        if number not in kept and (number != spare or number > step):
            try:
                remove_folder(entry)
            except OSError as error:
                # A viewer may have it open (Windows); the next save tries again.
                warnings.warn(f"{entry} could not be deleted ({error}).", stacklevel=3)


def _read_files(folder: Path) -> tuple[int, dict[str, bytes]]:
    """Step and checked contents; `CheckpointError` when anything is missing or differs."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes().decode("utf-8"))
        listed = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        files = {name: (folder / name).read_bytes() for name in listed}
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error!r}.") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != listed[name]:
            raise CheckpointError(f"{folder} is damaged: {name} is not what was saved.")
    return step, files


def latest_checkpoint(run: Run) -> Path | None:
    """Folder of the newest complete checkpoint; None if none was ever saved.

    Damaged ones are skipped with a warning; `CheckpointError` if no complete one is left.
    """
    restore_set_aside(run.checkpoints)
    folders = _folders(run)
    for _, folder in reversed(folders):
        try:
            _read_files(folder)
        except CheckpointError as error:
            warnings.warn(f"{error} The previous one is used.", stacklevel=2)
        else:
            return folder
    if folders:
        raise CheckpointError(
            f"None of the {len(folders)} checkpoints in {run.checkpoints} is complete; restore one "
            "from a backup, or start a new run."
        )
    return None


def load_checkpoint(folder: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint, tensors to ``device``; `CheckpointError` when it is torn.

    ``torch_state`` stays on the CPU: generator states must, and optimizers move theirs themselves.
    """
    step, files = _read_files(Path(folder))
    tensors: dict[str, dict[str, Tensor]] = {}
    torch_state: dict[str, Any] = {}
    for name, content in files.items():
        stem, _, ending = name.rpartition(".")
        if ending == "safetensors":
            tensors[stem] = {k: v.to(device) for k, v in load_tensors(content).items()}
        elif ending == "pt":
            torch_state[stem] = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
    state = json.loads(files["state.json"].decode("utf-8"))
    return Checkpoint(step, tensors, state, torch_state)
