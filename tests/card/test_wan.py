"""A whole run of Wan on a pretended card: text encoded once, library, steps, previews, checkpoints,
export; with blocks in main memory and without, and a clip of its LoRA.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_card import FakeCard
from host_waits import BESIDE_STEPS, places
from same_run import assert_same_run

from trainer.cli.main import main
from trainer.config import load_config, save_config
from trainer.media import read_clip
from trainer.models import umt5
from trainer.runs.events import read_events
from trainer.runs.folder import Run

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu  # noqa: E402

EXACT = {"hardware.precision": "fp32", "hardware.decode_precision": "fp32"}
SWAPPED = {"all on the card": 0, "blocks wait in main memory": 2}


def settings(small_wan: dict[str, Any], path, **more: Any) -> dict[str, Any]:
    given = {"hardware.gradient_checkpointing": True, "preview.every": 1, "data.cache": path.parent}
    return {**small_wan, **EXACT, **given, "run": str(path), **more}


def trained(given: dict[str, Any]) -> Run:
    """A run by the command line, of a settings file."""
    file = f"{given['run']}.toml"
    save_config(load_config(overrides=given), file)
    assert main(["train", "--config", file]) == 0
    return Run.open(given["run"])


@pytest.fixture(scope="module")
def on_cpu(small_wan, tmp_path_factory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "cpu"
    return trained(settings(small_wan, path, **{"hardware.device": "cpu"}))


@pytest.fixture(scope="module", params=SWAPPED)
def on_card(request, small_wan, tmp_path_factory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "card"
    more = {"hardware.blocks_to_swap": SWAPPED[request.param]}
    with FakeCard() as card:
        run = trained(settings(small_wan, path, **more))
    assert places(card.waits) <= set(BESIDE_STEPS)
    return run


def test_a_whole_run_is_that_of_the_cpu(on_card, on_cpu):
    (begun,) = read_events(on_card.events_path, "start")
    assert begun["device"].startswith("cuda")
    assert_same_run(on_card, on_cpu)
    kinds = {event["kind"] for event in read_events(on_card.events_path)}
    assert {"checkpoint", "preview", "export"} <= kinds


def test_it_goes_on_and_makes_clips(on_card, small_wan, card, tmp_path):
    assert main(["resume", str(on_card.path), "--steps=3"]) == 0
    assert [event["step"] for event in read_events(on_card.events_path, "step")] == [1, 2, 3]
    out = tmp_path / "clip.webp"
    asked = ["--lora", str(on_card.export_path), "--prompt", "a blue circle", "--steps", "1"]
    asked += ["--frames", "5", "--height", "32", "--width", "32", "--out", str(out)]
    assert main(["sample", "--model", small_wan["model"], *asked]) == 0
    assert len(read_clip(out)[0]) == 5
    assert card.waits and places(card.waits) <= set(BESIDE_STEPS)


def test_the_text_encoder_is_on_the_card_once_before_all_else(
    small_wan, card, tmp_path, monkeypatch
):
    read = umt5.read_umt5
    seen: list[tuple[torch.nn.Module, str]] = []

    def watched(*args: Any) -> Any:
        encoder, tokenizer = read(*args)
        encoder.register_forward_hook(lambda module, *_: seen.append((module, place(module))))
        return encoder, tokenizer

    def place(module: torch.nn.Module) -> str:
        return next(module.parameters()).device.type

    monkeypatch.setattr(umt5, "read_umt5", watched)
    run = trained(settings(small_wan, tmp_path / "run", **{"preview.every": 0}))
    assert {where for _, where in seen} == {"cuda"}
    assert len({id(encoder) for encoder, _ in seen}) == 1, "it is read once"
    text = run.log_path.read_text(encoding="utf-8")
    assert text.index("prompts and captions, once") < text.index("Trajectory library")


def test_the_benchmark_of_a_whole_run_is_on_the_card(card, tmp_path, monkeypatch):
    out = tmp_path / "run.json"
    argv = ["gpu.py", "--family", "wan", "--whole-run", "--tiny", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    assert gpu.main() == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["finished"] and found["machine"]["graphics_card"] == "Fake Card"
    assert found["peak_gib"] == 1, "what this card says of its memory"
    assert all(row["peak_gib"] == 1 for row in found["phases"])
    assert card.waits and places(card.waits) <= set(BESIDE_STEPS)
