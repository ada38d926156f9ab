"""The trial of motion representations, with an untrained judge and one step of training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wan_files

from minimaker.clips import save_weights
from minimaker.flow_clips import resized
from minimaker.footage import public_video
from minimaker.scenes import random_scene
from minimaker.small_wan import STARTED, VAE_FILE
from trainer.distill import session
from trainer.evaluate.truth import as_pixels
from trainer.families import load_model
from trainer.mini.reading import JUDGE_FILE, build_scene_judge
from trainer.motion import representations

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import motion_trial  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = wan_files.save_small(tmp_path_factory.mktemp("trial") / "small wän")
    shutil.copyfile(STARTED, folder / VAE_FILE)
    save_weights(build_scene_judge().eval(), folder / "judge" / JUDGE_FILE)
    return folder


def test_frames_that_a_linear_map_reads_move_where_latents_do(folder):
    model = load_model(str(folder))
    differences = motion_trial.frame_differences(model)
    scene = random_scene(np.random.default_rng(3), 9, pan=True)
    clip = as_pixels(resized(public_video(scene), 32)[None])
    moving, still = (
        differences(model.encode_clips(each)) for each in (clip, clip[:, :, :1].expand_as(clip))
    )
    assert moving.shape == (1, 3, 8, 4, 4)
    assert still[:, :, 4:].abs().mean() < 0.5 * moving[:, :, 4:].abs().mean()
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    differences(latents.requires_grad_()).square().mean().backward()
    assert latents.grad.abs().amax(dim=(1, 3, 4)).min() > 0


def test_a_candidate_of_its_own_takes_all_latents_and_leaves_with_its_run(folder):
    model, usual = load_model(str(folder)), session.build_representation
    clip = torch.randn(1, 16, 3, 4, 4)
    with motion_trial.compared(motion_trial.FIRST, model) as settings:
        assert settings == {"motion.representation": "diff"}
        found = session.build_representation("diff", 16, lead=1)
        assert torch.equal(found.student(clip), representations.diff(clip))
    assert session.build_representation is usual


def test_a_trial_makes_a_table_and_runs_on(folder, tmp_path):
    options = ["--model", str(folder), "--work", str(tmp_path / "work"), "--json",
               str(tmp_path / "trial.json"), "--steps", "1", "--library", "2", "--clips", "3",
               "--base-steps", "2", "--candidates", "diff", motion_trial.FRAMES]  # fmt: skip
    motion_trial.main(options)
    found = json.loads((tmp_path / "trial.json").read_text(encoding="utf-8"))
    labels = [row["label"] for row in found["rows"]]
    assert labels[:3] == ["true video in the style", "public video", "base model, 2 steps"]
    assert labels[3:] == [
        f"{name}, {steps} step{'s' if steps > 1 else ''}"
        for name in ("diff", motion_trial.FRAMES)
        for steps in motion_trial.STEPS
    ]
    assert found["rows"][2]["agrees"] == pytest.approx(1, abs=1e-5)
    assert all(row["style_kid"] is not None for row in found["rows"])
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "work").rglob("*.safetensors")}
    motion_trial.main(options)
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "work").rglob("*.safetensors")}
    table = (tmp_path / "trial.md").read_text(encoding="utf-8")
    assert all(f"| {label} |" in table for label in labels) and "32 x 32" in table
