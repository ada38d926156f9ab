"""What the commands are run with on the pretended card (`fake_card`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wan_files
from fake_card import FakeCard
from network_files import tiny_clip, tiny_dinov2, tiny_videomae

from trainer.media import write_clip
from trainer.models.clip import clip_tokenizer

SMALL: dict[str, Any] = {
    "steps": 2,
    "seed": 3,
    "data.library_clips": 2,
    "data.batch_size": 2,
    "data.min_side": 16,
    "data.frames": 8,
    "data.height": 32,
    "data.width": 32,
    "trajectory.ddim_timesteps": 8,
    "lora.rank": 2,
    "preview.every": 0,
    "preview.steps": (1, 2),
    "preview.teacher_steps": 2,
    "preview.count": 1,
    "checkpoint.every": 1,
}


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with FakeCard() as found:
        yield found


@pytest.fixture(scope="session")
def small(smallest_model, style_images) -> dict[str, Any]:
    """Settings of a run on the smallest ModelScope model, all but its folder.

    The feature network also reads captions.
    """
    files = {"model": str(smallest_model), "images": str(style_images)}
    return {**files, "adversarial.features": "mini", **SMALL}


@pytest.fixture(scope="session")
def small_animatediff(
    sd15_checkpoint, motion_module_file, style_images, tmp_path_factory
) -> dict[str, Any]:
    """The same on the tiny AnimateDiff, where no network reads captions."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a cat walking\ta cat\na dog running\ta dog\n", encoding="utf-8")
    return {
        "model": str(sd15_checkpoint),
        "motion_module": str(motion_module_file),
        "images": str(style_images),
        "prompts": str(prompts),
        **SMALL,
        "data.frames": 4,
    }


@pytest.fixture(scope="session")
def small_wan(style_images, tmp_path_factory) -> dict[str, Any]:
    """The same on a tiny Wan as a single file, its parts in ComfyUI's folders beside it."""
    models = wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    return {
        "model": str(next((models / "diffusion_models").iterdir())),
        "images": str(style_images),
        "prompts": str(prompts),
        "adversarial.features": "efficientnet-lite0",
        **SMALL,
        "data.frames": 5,
        "data.library_steps": 4,
        "preview.steps": (1,),
    }


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A folder with one video of 12 frames."""
    folder = tmp_path_factory.mktemp("videos")
    pictures = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    write_clip(pictures, folder / "noise.mp4", 8)
    (folder / "noise.txt").write_text("a red star moving up", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> Path:
    """Folders ``dinov2``, ``clip`` and ``videomae`` of tiny size with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    made = {"dinov2": tiny_dinov2(), "clip": tiny_clip(), "videomae": tiny_videomae()}
    for name, network in made.items():
        network.save_pretrained(folder / name)
    clip_tokenizer().save_pretrained(folder / "clip")
    return folder
