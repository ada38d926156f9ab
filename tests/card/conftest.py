"""What the commands are run with on the pretended card (`fake_card`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_card import FakeCard
from transformers import Dinov2Config, Dinov2Model

from trainer.media import write_clip

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
    "lora.alpha": 2.0,
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
    """Settings of a run on the smallest ModelScope model, all but its folder."""
    return {"model": str(smallest_model), "images": str(style_images), **SMALL}


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
def videos(tmp_path_factory) -> Path:
    """A folder with one video of 12 frames."""
    folder = tmp_path_factory.mktemp("videos")
    pictures = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    write_clip(pictures, folder / "noise.mp4", 8)
    (folder / "noise.txt").write_text("a red star moving up", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory) -> Path:
    """A DINOv2 folder of tiny size with random weights."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path_factory.mktemp("networks") / "dinov2"
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def flags(tmp_path: Path) -> Callable[..., list[str]]:
    """Settings as arguments of a command."""

    def as_flags(settings: dict[str, Any], **more: Any) -> list[str]:
        pairs = {**settings, **more}.items()
        shown = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in pairs}
        return [f"--{k.replace('_', '-')}={v}" for k, v in shown.items()]

    return as_flags
