"""Promises of checkpoints: exact, whole or absent, and an older one when the newest is incomplete."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import load_config
from trainer.runs.checkpoints import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trainer.runs.folder import Run
from trainer.files import DiskFullError

ROOT = Path(__file__).resolve().parents[2]
SAVE_FOREVER = """
import sys
from pathlib import Path
import torch
from trainer.runs.checkpoints import save_checkpoint
from trainer.runs.folder import Run
run = Run.open(Path(sys.argv[1]))
for step in range(1, 10**6):
    if step == 3:
        print("two are saved", flush=True)
    weight = torch.full((500_000,), float(step))
    groups = {"student": {"w": weight}, "head": {"w": weight}}
    save_checkpoint(run, step, groups, {"step": step}, keep=2, torch_state={"adam": {"m": weight}})
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "Lauf ü", load_config())


def save(run: Run, step: int, keep: int = 3) -> Path:
    weights = {"student": {"w": torch.full((2000,), float(step))}}
    return save_checkpoint(run, step, weights, {"cursor": step}, keep)


def names(run: Run) -> list[str]:
    return sorted(entry.name for entry in run.checkpoints.iterdir())


def latest(run: Run) -> str:
    folder = latest_checkpoint(run)
    assert folder is not None
    return folder.name


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """A real limit of the system on the size of a file: writing beyond it fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_and_state_come_back_exactly(run: Run) -> None:
    shared = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    tensors = {
        "student": {"down.0.lora_A": shared, "tied": shared, "turned": shared.T},
        "head": {"b": torch.tensor(1.5, dtype=torch.bfloat16), "n": torch.zeros(0, 2)},
        "empty": {},
    }
    rng = np.random.default_rng(3)
    state = {"cursor": [3, 1], "text": "ü 猫", "lr": 0.1 + 0.2, "rng": rng.bit_generator.state}
    folder = save_checkpoint(run, 500, tensors, state)
    assert folder == run.checkpoints / "step-000500"
    found = load_checkpoint(folder)
    assert (found.step, found.state) == (500, state)
    assert set(found.tensors) == set(tensors)
    for group, values in tensors.items():
        assert set(found.tensors[group]) == set(values)
        for key, value in values.items():
            assert found.tensors[group][key].dtype == value.dtype
            assert torch.equal(found.tensors[group][key], value)
    rng_again = np.random.default_rng(0)
    rng_again.bit_generator.state = found.state["rng"]
    assert rng_again.random() == rng.random()


def train(model: nn.Module, adam: torch.optim.Optimizer, noise: torch.Generator) -> None:
    for _ in range(3):
        adam.zero_grad()
        model(torch.randn(5, 4, generator=noise)).square().mean().backward()
        adam.step()


def make_training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
    model = nn.Linear(4, 2)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(model.bias)
    return model, torch.optim.AdamW(model.parameters()), torch.Generator().manual_seed(seed)


def test_optimizer_and_generators_resume_bit_for_bit(run: Run) -> None:
    model, adam, noise = make_training(0)
    train(model, adam, noise)
    plain = random.Random(5)
    others = {
        "adam": adam.state_dict(),
        "random": {"noise": noise.get_state(), "python": plain.getstate()},
    }
    folder = save_checkpoint(run, 3, {"model": model.state_dict()}, {}, torch_state=others)
    train(model, adam, noise)

    model2, adam2, noise2 = make_training(1)
    found = load_checkpoint(folder)
    model2.load_state_dict(found.tensors["model"])
    adam2.load_state_dict(found.torch_state["adam"])
    noise2.set_state(found.torch_state["random"]["noise"])
    train(model2, adam2, noise2)
    assert torch.equal(model2.weight, model.weight) and torch.equal(model2.bias, model.bias)
    again = random.Random(0)
    again.setstate(found.torch_state["random"]["python"])
    assert again.random() == plain.random()


def test_newest_are_kept_and_the_latest_is_found(run: Run) -> None:
    assert latest_checkpoint(run) is None
    for step in (5, 10, 999_999, 1_000_000):
        save(run, step, keep=2)
    assert names(run) == ["step-1000000", "step-999999"]
    assert latest(run) == "step-1000000"


def test_saving_after_resuming_earlier_drops_the_left_history(run: Run) -> None:
    for step in (100, 200, 300):
        save(run, step, keep=2)
    save(run, 250, keep=1)
    assert names(run) == ["step-000250"]


def test_saving_a_step_again_replaces_it(run: Run) -> None:
    save(run, 7)
    save_checkpoint(run, 7, {"student": {"w": torch.ones(1)}}, {"cursor": "new"})
    assert names(run) == ["step-000007"]
    assert load_checkpoint(run.checkpoints / "step-000007").state == {"cursor": "new"}


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "no_manifest"])
def test_torn_checkpoint_is_passed_over_with_a_warning(run: Run, damage: str) -> None:
    save(run, 1)
    folder = save(run, 2)
    weights, manifest = folder / "student.safetensors", folder / "manifest.json"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "flip":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:40])
    else:
        manifest.unlink()
    with pytest.raises(CheckpointError, match="step-000002 is damaged"):
        load_checkpoint(folder)
    with pytest.warns(UserWarning, match="step-000002 is damaged.*previous one is used"):
        assert latest(run) == "step-000001"
    save(run, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest(run) == "step-000002"


def test_only_torn_checkpoints_is_an_error_not_a_fresh_start(run: Run) -> None:
    (save(run, 1) / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(CheckpointError, match="None of the 1 checkpoints .* is complete"),
    ):
        latest_checkpoint(run)


def test_leftovers_of_killed_saves_are_cleaned_up(run: Run) -> None:
    save(run, 1)
    (run.checkpoints / ".tmp-step-000002-abc").mkdir()
    (run.checkpoints / ".tmp-step-000002-abc" / "student.safetensors").write_bytes(b"half")
    # Killed between the two renames that replace a checkpoint: the old one is set aside.
    (run.checkpoints / "step-000001").rename(run.checkpoints / ".old-step-000001")
    assert latest(run) == "step-000001"
    assert names(run) == ["step-000001"]


def is_saving(run: Run) -> bool:
    """Whether a save has begun and is not finished."""
    try:
        return any(run.checkpoints.glob(".tmp-step-*/*"))
    except FileNotFoundError:  # it got its final name while we looked (Python before 3.13 raises)
        return False


def test_kill_while_saving_leaves_a_whole_checkpoint(run: Run) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(run.path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"two are saved\n"
        while not is_saving(run):
            assert child.poll() is None
    finally:
        child.kill()
        child.communicate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing under a final name may be torn
        folder = latest_checkpoint(run)
    assert folder is not None
    found = load_checkpoint(folder)
    expected = torch.full((500_000,), float(found.step))
    assert found.state == {"step": found.step}
    for value in (found.tensors["student"]["w"], found.torch_state["adam"]["m"]):
        assert torch.equal(value, expected)
    assert not any(name.startswith(".") for name in names(run))


def test_disk_that_fills_up_leaves_the_last_checkpoint_intact(run: Run) -> None:
    save(run, 1)
    with file_size_limit(4000), pytest.raises(DiskFullError, match="the disk is full"):
        save(run, 2)
    assert names(run) == ["step-000001"]
    assert torch.equal(
        load_checkpoint(run.checkpoints / "step-000001").tensors["student"]["w"], torch.ones(2000)
    )
    save(run, 2)
    assert latest(run) == "step-000002"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": {"x": float("nan")}}, "`state` must be plain JSON"),
        ({"state": {"x": {1}}}, "`state` must be plain JSON"),
        ({"tensors": {"../a": {}}}, r"'../a' cannot name a group"),
        ({"torch_state": {"rng": {"a": [np.zeros(2)]}}}, r"rng\['a'\]\[0\] is a ndarray"),
        ({"torch_state": {"s": {"lr_lambdas": [len]}}}, "builtin_function_or_method"),
    ],
)
def test_what_cannot_be_loaded_again_is_not_saved(run: Run, arguments: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(run, 1, **{"tensors": {}, "state": {}, **arguments})
    assert names(run) == []


def test_keep_must_leave_one(run: Run) -> None:
    with pytest.raises(ValueError, match="`keep`=0"):
        save(run, 1, keep=0)


def test_manifest_lists_every_file(run: Run) -> None:
    folder = save(run, 4)
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert listed["step"] == 4
    assert set(listed["files"]) == {"state.json", "student.safetensors"}
    assert listed["files"]["student.safetensors"]["bytes"] > 8000
