"""A base model of another kind is one file and one line: it trains, samples, is measured, exported
and inspected, and nothing else knows of it.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from flow_family import FAMILY, save_tiny
from safetensors.torch import load_file

from trainer import families
from trainer.cli.main import main
from trainer.families import load_model
from trainer.media import read_clip
from trainer.runs.events import read_events
from trainer.runs.folder import Run


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    families.FAMILIES.append(FAMILY)  # the one line
    yield save_tiny(tmp_path_factory.mktemp("models") / "tiny flow ü")
    families.FAMILIES.remove(FAMILY)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module", params=["endpoint", "consistency"])
def run(request, flow, prompts, style_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / request.param
    options = {
        "--model": flow, "--images": style_images, "--prompts": prompts, "--run": path,
        "--steps": 3, "--data.library-clips": 2, "--data.batch-size": 2, "--data.min-side": 16,
        "--lora.rank": 2, "--lora.alpha": 2, "--preview.every": 3, "--preview.count": 1,
        "--preview.steps": "1,2", "--preview.teacher-steps": 2, "--motion.target": request.param,
        "--trajectory.replay-probability": 0.5, "--adversarial.features": "efficientnet-lite0",
        "--hardware.device": "cpu", "--hardware.gradient-checkpointing": "true",
        "--trajectory.ddim-timesteps": 8, "--data.library-steps": 4,
    }  # fmt: skip
    assert main(["train", *(f"{name}={value}" for name, value in options.items())]) == 0
    return Run.open(path)


def test_it_trains_with_finite_losses_and_previews(run):
    steps = read_events(run.events_path, "step")
    assert len(steps) == 3
    for name in ("loss", "adversarial", "discriminator", "grad_norm"):
        assert all(torch.isfinite(torch.tensor(step[name])) for step in steps), name
    assert sum(step["grad_norm"] for step in steps) > 0
    assert read_clip(next((run.samples / "step-000003").glob("*steps-2.mp4")))[0].shape[0] == 5


def test_its_lora_changes_what_is_sampled(run, flow, tmp_path):
    clips = []
    for strength in (10, -10):
        out = tmp_path / f"{strength} ä.webp"
        options = ["--prompt", "a red star", "--steps", "2", "--seed", "1", "--out", str(out)]
        options += ["--lora", str(run.export_path), f"--strength={strength}"]
        assert main(["sample", "--model", str(flow), *options]) == 0
        clips.append(read_clip(out)[0])
    assert clips[0].shape[0] == 5
    assert (clips[0] != clips[1]).any()


def test_it_is_measured(run, flow, prompts, tmp_path):
    rows = tmp_path / "rows.json"
    options = ["--model", str(flow), "--lora", str(run.export_path), "--prompts", str(prompts)]
    options += ["--count", "2", "--steps", "1", "--teacher-steps", "2", "--json", str(rows)]
    assert main(["evaluate", *options]) == 0
    found = json.loads(rows.read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in found] == ["teacher", "student"]


def test_it_is_exported_and_inspected(run, flow, tmp_path, capsys):
    out = tmp_path / "again.safetensors"
    assert main(["export", str(run.path), "--checkpoint", "3", "--out", str(out)]) == 0
    assert load_file(out).keys() == load_file(run.export_path).keys()
    capsys.readouterr()
    assert main(["inspect", str(out), "--model", str(flow)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^mcm.family +flow$", shown, re.MULTILINE)
    assert re.search(r"^modules +\d+$", shown, re.MULTILINE), "every one is known to the model"


def test_a_run_goes_on_from_its_checkpoint(run):
    assert main(["resume", str(run.path), "--steps=4"]) == 0
    assert [step["step"] for step in read_events(run.events_path, "step")] == [1, 2, 3, 4]


@torch.no_grad()
def test_text_past_the_end_of_a_prompt_is_zero_and_counts_for_nothing(flow):
    model = load_model(str(flow))
    states = model.encode_text(["a red star", "a blue circle moving up"])
    assert (states[0, 4:] == 0).all() and (states[0, :4] != 0).any(-1).all()
    vectors = model.pooled_text(["a red star", "a blue circle moving up"])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
