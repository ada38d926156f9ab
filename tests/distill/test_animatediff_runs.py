"""A whole run on a tiny AnimateDiff: train, export, resume, sample; continue from another rank."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer.cli.main import main
from trainer.config import load_config
from trainer.distill.loop import train
from trainer.distill.preflight import preflight
from trainer.families import load_model
from trainer.lora.formats import read_lora
from trainer.lora.pairs import base_modules
from trainer.runs.folder import Run

SMALL = {
    "data.frames": 4,
    "data.height": 32,
    "data.width": 32,
    "data.library_clips": 2,
    "data.batch_size": 1,
    "data.min_side": 16,
    "trajectory.ddim_timesteps": 10,
    "lora.rank": 2,
    "preview.every": 0,
    "checkpoint.every": 2,
    "optim.schedule": "constant",
    "hardware.device": "cpu",
    "seed": 3,
}


@pytest.fixture(scope="module")
def settings(sd15_checkpoint, motion_module_file, style_images, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a cat walking\ta cat\na dog running\ta dog\n", encoding="utf-8")
    return {
        "model": str(sd15_checkpoint),
        "motion_module": str(motion_module_file),
        "images": str(style_images),
        "prompts": str(prompts),
        **SMALL,
    }


def new_run(settings, path, **changes):
    return Run.create(path, load_config(overrides={**settings, "run": str(path), **changes}))


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    run = new_run(settings, tmp_path_factory.mktemp("runs") / "stil", steps=3)
    assert train(run, None).status == "finished"
    return run


@pytest.fixture(scope="module")
def model(sd15_checkpoint, motion_module_file):
    return load_model(str(sd15_checkpoint), motion_module=motion_module_file)


def test_the_export_covers_what_the_official_loras_cover(finished, model):
    found = read_lora(finished.export_path, model.network)
    uncovered = ("conv_in", "conv_out", "time_embedding")
    wanted = {p for p in base_modules(model.network) if p.split(".")[0] not in uncovered}
    assert set(found.pairs) == wanted
    kinds = {type(base_modules(model.network)[path]) for path in found.pairs}
    assert {kind.__name__ for kind in kinds} >= {"Conv2d", "Linear"} or len(kinds) == 2
    assert all(isinstance(base_modules(model.network)[p], (nn.Linear, nn.Conv2d)) for p in wanted)
    assert any("motion_modules" in path for path in found.pairs)
    assert any(pair.up.abs().max() > 0 for pair in found.pairs.values())


def test_its_header_tells_how_to_use_it(finished, motion_module_file, model):
    told = read_lora(finished.export_path).metadata
    assert told["mcm.family"] == "animatediff"
    assert told["mcm.motion_module"] == motion_module_file.name
    assert told["mcm.base_hash"] == model.base_hash
    assert told["modelspec.license"] == model.licence
    assert model.licence in finished.log_path.read_text(encoding="utf-8")
    nodes = {node["type"]: node for node in json.loads(told["workflow"])["nodes"]}
    assert nodes["CheckpointLoaderSimple"]["widgets_values"] == ["tiny Stil ä.safetensors"]
    assert nodes["MCM_AnimateDiff"]["widgets_values"] == [motion_module_file.name]
    assert nodes["MCM_EmptyLatentVideo"]["widgets_values"] == [32, 32, 4, 1]
    assert "MCM_LoadVideoModel" not in nodes


def test_a_resumed_run_equals_the_straight_one(finished, settings, tmp_path):
    run = new_run(settings, tmp_path / "resumed", steps=2)
    train(
        run, None
    )  # ends one step early; the schedule is constant, or that would change its rates
    assert main(["resume", str(run.path), "--steps", "3"]) == 0
    ours, theirs = load_file(run.export_path), load_file(finished.export_path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_lora_samples_a_clip(finished, settings, tmp_path, capsys):
    base = ["--model", settings["model"], "--motion-module", settings["motion_module"]]
    size = ["--frames", "4", "--height", "32", "--width", "32"]
    lora = ["--lora", str(finished.export_path), "--steps", "2", "--device", "cpu"]
    out = tmp_path / "clip.webp"
    arguments = ["sample", *base, *size, *lora, "--prompt", "a cat", "--out", str(out)]
    assert main(arguments) == 0 and out.stat().st_size > 100
    assert "Apache-2.0" in capsys.readouterr().err
    assert main(["inspect", str(finished.export_path), *base]) == 0
    shown = capsys.readouterr().out
    assert "animatediff" in shown and "unknown" not in shown.split("rank")[0]


def test_a_run_continues_from_a_lora_of_a_lower_rank(finished, settings, tmp_path, model):
    path = tmp_path / "continued"
    more = {"start_from": str(finished.export_path), "lora.rank": 3, "optim.lr": 1e-8}
    train(new_run(settings, path, steps=1, **more), None)
    before = read_lora(finished.export_path, model.network).pairs
    after = read_lora(path / "continued.safetensors", model.network).pairs
    assert {pair.rank for pair in after.values()} == {3}
    for name, pair in before.items():
        torch.testing.assert_close(after[name].delta(), pair.delta(), rtol=1e-2, atol=1e-6)


def test_preflight_measures_it(settings, tmp_path):
    more = {"run": str(tmp_path / "r"), "preview.teacher_steps": 1, "preview.steps": (1,)}
    config = load_config(overrides={**settings, **more, "preview.every": 1, "preview.count": 1})
    report = preflight(config)
    assert report.fits and report.checkpoint_bytes > 0 and report.seconds_per_step > 0
