"""Every command that computes, as a user types it, on a pretended card."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import wan_files
from fake_card import CardTensor, FakeCard
from host_waits import BESIDE_STEPS, MEASURING, places
from network_files import write_blip

from trainer.cli.main import main
from trainer.config import load_config, save_config
from trainer.families import load_model
from trainer.lora.adapter import add_lora, lora_parameters, lora_state
from trainer.lora.export import export_file
from trainer.lora.metadata import LoraCard, build_metadata
from trainer.media import read_clip
from trainer.models.block_swap import BlockSwap
from trainer.paths import MINI
from trainer.runs.events import read_events
from trainer.runs.folder import Run


def settings_file(settings: dict[str, Any], path) -> str:
    save_config(load_config(overrides=settings), path)
    return str(path)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Run:
    """A run that was trained on the card, with previews."""
    path = tmp_path_factory.mktemp("runs") / "style"
    settings = {**small, "run": str(path), "steps": 1, "preview.every": 1}
    with FakeCard() as card:
        assert main(["train", "--config", settings_file(settings, path.with_suffix(".toml"))]) == 0
    assert places(card.waits) <= set(BESIDE_STEPS)
    run = Run.open(path)
    assert read_events(run.events_path, "start")[0]["device"].startswith("cuda")
    return run


def test_own_prompts_and_the_runs_own_preview(trained, card):
    assert main(["preview", str(trained.path), "--prompt", "a red star moving up"]) == 0
    assert main(["preview", str(trained.path)]) == 0
    assert (trained.samples / "own-000001-001" / "prompt-1-steps-2.mp4").is_file()
    assert places(card.waits) <= set(BESIDE_STEPS)


def test_export(trained, card, tmp_path):
    out = tmp_path / "a.safetensors"
    assert main(["export", str(trained.path), "--out", str(out)]) == 0
    assert out.is_file()
    assert places(card.waits) <= set(BESIDE_STEPS)


def test_resume(trained, card, tmp_path):
    shutil.copytree(trained.path, tmp_path / "again")
    assert main(["resume", str(tmp_path / "again"), "--steps=2"]) == 0
    assert places(card.waits) <= set(BESIDE_STEPS)


def test_preflight(small, card, tmp_path):
    settings = {**small, "run": str(tmp_path / "run"), "hardware.precision": "fp16"}
    file, out = settings_file(settings, tmp_path / "c.toml"), tmp_path / "report.json"
    assert main(["preflight", "--config", file, "--json", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["device"].startswith("cuda")
    assert places(card.waits) <= set(BESIDE_STEPS)


@pytest.mark.parametrize("student", [True, False])
def test_sample(student, trained, small, card, tmp_path):
    lora = ["--lora", str(trained.export_path)] if student else ["--steps=2"]
    argv = ["sample", "--model", small["model"], *lora, "--prompt", "a red star"]
    assert main([*argv, "--out", str(tmp_path / "clip.webp")]) == 0
    assert len(read_clip(tmp_path / "clip.webp")[0]) == 8
    assert card.waits and places(card.waits) <= set(BESIDE_STEPS)


def wan_lora(model, path):
    """A few-step LoRA of random numbers for the Wan at ``model``."""
    network = load_model(str(model)).network
    add_lora(network, 2, 2.0)
    with torch.no_grad():
        for index, parameter in enumerate(lora_parameters(network)):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.copy_(0.2 * drawn)
    pairs = lora_state(network)
    told = LoraCard(
        title="Ink", family="wan", base_model="Wan", base_hash="", base_license="Apache-2.0",
        frames=5, width=32, height=32, fps=16, prediction_type="velocity", shift=5.0,
    )  # fmt: skip
    export_file(pairs, path, build_metadata(told, pairs))
    return path


def test_a_model_larger_than_the_card_makes_its_clips(card, tmp_path, monkeypatch):
    """Its blocks wait in main memory; its LoRA is merged there."""
    started = []
    start = BlockSwap.start
    monkeypatch.setattr(BlockSwap, "start", lambda *a: (started.append(a[0]), start(*a)))
    file = next((wan_files.save_comfyui(tmp_path) / "diffusion_models").iterdir())
    lora = wan_lora(file, tmp_path / "ink.safetensors")
    argv = ["sample", "--model", str(file), "--prompt", "a red star", "--steps=2"]
    argv += ["--frames=5", "--height=32", "--width=32", "--blocks-to-swap=2"]
    clips = []
    for more in ([], ["--lora", str(lora)]):
        out = tmp_path / f"{len(more)}.webp"
        assert main([*argv, *more, "--out", str(out)]) == 0
        clips.append(read_clip(out)[0])
    assert len(clips[0]) == 5 and not np.array_equal(*clips)
    assert len(started) == 2
    for swap in started:
        assert all(isinstance(place, CardTensor) for place in swap.places)
        assert not any(isinstance(host, CardTensor) for host in swap.hosts)
    assert places(card.waits) <= set(BESIDE_STEPS)


def test_evaluate_samples_and_looks_on_the_card(trained, small, networks, videos, card, tmp_path):
    model = tmp_path / "with a judge"
    shutil.copytree(small["model"], model)
    shutil.copytree(MINI / "judge", model / "judge")
    argv = ["evaluate", "--model", str(model), "--lora", str(trained.export_path)]
    argv += ["--style", small["images"], "--steps=1", "--teacher-steps=2", "--count=2"]
    argv += ["--blocks-to-swap=1"]
    argv += ["--videomae", str(networks / "videomae"), "--clip", str(networks / "clip")]
    argv += ["--videos", str(videos), "--json", str(tmp_path / "rows.json")]
    assert main(argv) == 0
    found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert found["meta"]["machine"]["device"] == "Fake Card"
    assert places(card.waits) <= {*BESIDE_STEPS, *MEASURING}
    assert set(MEASURING) <= places(card.waits), "the networks that measure are on the card too"


def test_caption(style_images, card, tmp_path):
    write_blip(tmp_path / "blip")
    shutil.copytree(style_images, tmp_path / "images")
    for file in (tmp_path / "images").glob("*.txt"):
        file.unlink()
    for file in list((tmp_path / "images").glob("*.png"))[1:]:
        file.unlink()
    argv = ["caption", str(tmp_path / "images"), "--captioner", str(tmp_path / "blip")]
    assert main(argv) == 0
    assert card.waits, "it was on the card"
