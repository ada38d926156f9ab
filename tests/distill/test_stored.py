"""A checkpoint as a student again: exported, sampled, and refused when it is not there."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from trainer.cli.main import main
from trainer.config import load_config
from trainer.distill.loop import train
from trainer.distill.stored import best_checkpoint, export_checkpoint, preview_checkpoint
from trainer.lora.files import read_metadata
from trainer.runs.checkpoints import checkpoint_steps
from trainer.runs.events import EventLog, read_events
from trainer.runs.folder import Run, RunError


@pytest.fixture(scope="module")
def run(tiny_model, style_images, tmp_path_factory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "stored"
    overrides = {
        "model": str(tiny_model), "adversarial.features": str(tiny_model.parent / "dinov2"),
        "images": str(style_images), "run": str(path), "steps": 3,
        "trigger": "flat", "data.library_clips": 2, "data.batch_size": 2, "data.min_side": 16,
        "trajectory.ddim_timesteps": 8, "lora.rank": 2, "preview.every": 3,
        "preview.steps": (1, 2), "preview.teacher_steps": 2, "checkpoint.every": 1,
        "hardware.device": "cpu",
    }  # fmt: skip
    made = Run.create(path, load_config(overrides=overrides))
    assert train(made, None).status == "finished"
    return made


def test_the_last_checkpoint_exports_the_same_lora_as_the_run(run):
    made = export_checkpoint(run)
    assert made.path == run.path / "stored-step00000003.safetensors"
    ours, theirs = load_file(made.path), load_file(run.export_path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    first, second = read_metadata(made.path), read_metadata(run.export_path)
    different = {key for key in first if first[key] != second.get(key)}
    assert different <= {"workflow", "modelspec.date"}


def test_an_earlier_checkpoint_is_another_lora_and_existing_files_are_kept(run, tmp_path):
    assert checkpoint_steps(run) == [1, 2, 3]
    out = tmp_path / "early.safetensors"
    assert main(["export", str(run.path), "--checkpoint", "1", "--out", str(out)]) == 0
    assert read_metadata(out)["ss_steps"] == "1"
    before = out.read_bytes()
    assert main(["export", str(run.path), "--checkpoint", "2", "--out", str(out)]) == 1
    assert out.read_bytes() == before
    assert main(["export", str(run.path), "--checkpoint=2", f"--out={out}", "--force"]) == 0
    assert read_metadata(out)["ss_steps"] == "2"


def test_own_prompts_make_a_preview_of_their_own(run):
    made = preview_checkpoint(run, ["a red star, growing"], seed=5)
    exported = read_events(run.events_path, "export")[-1]["step"]
    assert made.folder.name == f"own-{exported:06d}-001", "the step that the LoRA is of"
    names = {file.name for file in made.folder.glob("*.mp4")}
    assert names == {"prompt-1-teacher.mp4", "prompt-1-steps-1.mp4", "prompt-1-steps-2.mp4"}
    prompts = json.loads((made.folder / "prompts.json").read_text(encoding="utf-8"))
    assert prompts == ["a red star, growing"]


def test_a_preview_of_the_run_is_an_event_with_motion_and_style(run):
    first, event = read_events(run.events_path, "preview")
    assert (first["step"], event["step"]) == (0, 3)
    for measure in ("motion_kept", "motion_agrees", "style_reached", "content_kept"):
        assert set(event[measure]) == {"1", "2"}
    assert all(value <= 1 for value in event["style_reached"].values())
    assert main(["preview", str(run.path)]) == 0
    assert len(read_events(run.events_path, "preview")) == 3


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(RunError, match="no checkpoint of step 7; it has 1, 2, 3"):
        export_checkpoint(run, 7)
    empty = Run.create(tmp_path / "empty", load_config(overrides={"run": tmp_path / "empty"}))
    with pytest.raises(RunError, match="no checkpoint yet"):
        export_checkpoint(empty)


def test_the_best_preview_decides_what_is_exported_and_its_checkpoint_stays(
    tiny_model, style_images, tmp_path
):
    overrides = {
        "model": str(tiny_model), "adversarial.features": str(tiny_model.parent / "dinov2"),
        "images": str(style_images), "run": str(tmp_path / "best"),
        "steps": 2, "data.library_clips": 2, "data.batch_size": 2, "data.min_side": 16,
        "trajectory.ddim_timesteps": 8, "lora.rank": 2, "optim.lr": 0.01,
        "preview.every": 1, "preview.steps": (1, 2), "preview.teacher_steps": 2,
        "checkpoint.every": 1, "checkpoint.keep": 1, "hardware.device": "cpu",
    }  # fmt: skip
    run = Run.create(tmp_path / "best", load_config(overrides=overrides))
    assert train(run, None).status == "finished"
    with EventLog(run.events_path) as events:  # as good as a preview can be
        perfect = {"1": 1.0, "2": 1.0}
        events.append("preview", step=2, motion_kept=perfect, style_reached=perfect)
    assert main(["resume", str(run.path), "--steps", "5"]) == 0
    assert checkpoint_steps(run) == [2, 5], "the best one stays beside the one that is kept"
    assert read_metadata(run.export_path)["ss_steps"] == "2"
    assert read_events(run.events_path, "export")[-1]["step"] == 2
    assert "Step 2 is exported" in run.log_path.read_text(encoding="utf-8")
    out = tmp_path / "again.safetensors"
    assert main(["export", str(run.path), "--checkpoint", "best", "--out", str(out)]) == 0
    ours, theirs = load_file(out), load_file(run.export_path)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_without_a_scored_preview_there_is_no_best(run):
    with pytest.raises(RunError, match="measured its style; choose one of the steps"):
        best_checkpoint(Run.create(run.path.with_name("none"), run.config()))
