"""The cost benchmark runs, at a size that says nothing about cost, and both sides agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (
    "time_ratio",
    "time_ratio_library",
    "memory_ratio_checkpointing",
    "time_ratio_checkpointing",
    "max_loss_difference",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("cost") / "step cost.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "step_cost.py"), "--model", "tiny"]
    command += ["--repeats", "1", "--device", "cpu", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text(encoding="utf-8"))


def test_the_numbers_of_the_contract_are_there(found):
    for name in CONTRACT:
        assert isinstance(found[name], float) and found[name] >= 0, name
    assert found["machine"]["processor"] and found["date"]


def test_the_reference_computes_the_same_losses_and_gradients(found):
    assert found["max_loss_difference"] < 1e-4
    assert found["max_gradient_difference"] < 1e-2
    assert found["library_loss_difference"] < 0.05  # stored in half precision


def test_the_library_and_the_cache_save_arithmetic(found):
    ratios = found["flop_ratio"]
    assert ratios["library"] < ratios["ours"] < ratios["reference"] == 1
    assert ratios["ours"] < ratios["checkpointing"]


def test_the_parts_add_up(found):
    for parts in found["breakdown"].values():
        assert parts["student forward"] > 0 and parts["backward"] > 0
    assert found["breakdown"]["reference"]["encode"] > 0 == found["breakdown"]["ours"]["encode"]
