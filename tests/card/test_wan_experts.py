"""Runs of both experts of Wan 2.2 14B on a pretended card, and a clip of both LoRAs."""

from __future__ import annotations

from typing import Any

import pytest
import wan_files
from fake_card import FakeCard
from host_waits import BESIDE_STEPS, places
from same_run import assert_same_run

from trainer.cli.main import main
from trainer.config import load_config, save_config
from trainer.media import read_clip
from trainer.runs.folder import Run

EXACT = {"hardware.precision": "fp32", "hardware.decode_precision": "fp32"}
SWAPPED = {"high": 0, "low": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return wan_files.save_experts(tmp_path_factory.mktemp("ComfyUI") / "models")


def trained(small_wan: dict[str, Any], file, path, **more: Any) -> Run:
    """A run by the command line, of a settings file, with a cache of its own."""
    given = {**small_wan, **EXACT, "preview.every": 2, "data.cache": path}
    given |= {"hardware.gradient_checkpointing": True, **more}
    given |= {"model": str(file), "run": str(path / "run")}
    save_config(load_config(overrides=given), path / "run.toml")
    assert main(["train", "--config", str(path / "run.toml")]) == 0
    return Run.open(path / "run")


@pytest.fixture(scope="module")
def on_card(small_wan, files, tmp_path_factory) -> dict[str, Run]:
    found = {}
    for which, file in files.items():
        more = {"hardware.blocks_to_swap": SWAPPED[which]}
        with FakeCard() as card:
            found[which] = trained(small_wan, file, tmp_path_factory.mktemp(which), **more)
        assert places(card.waits) <= set(BESIDE_STEPS)
    return found


@pytest.mark.parametrize("which", ["high", "low"])
def test_a_whole_run_is_that_of_the_cpu(which, on_card, small_wan, files, tmp_path):
    on_cpu = trained(small_wan, files[which], tmp_path, **{"hardware.device": "cpu"})
    assert_same_run(on_card[which], on_cpu)


def test_both_make_a_clip(on_card, files, card, tmp_path):
    loras = {which: run.export_path for which, run in on_card.items()}
    asked = ["--lora", loras["low"], "--other-lora", loras["high"], "--prompt", "a blue circle"]
    asked += ["--frames", 5, "--height", 32, "--width", 32, "--out", tmp_path / "clip.webp"]
    assert main(["sample", "--model", str(files["low"]), *map(str, asked)]) == 0
    assert len(read_clip(tmp_path / "clip.webp")[0]) == 5
    assert card.waits and places(card.waits) <= set(BESIDE_STEPS)
