"""Shared fixtures.

A real diffusers model at tiny size, and style images. The repository root comes last on the path.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT, ROOT / "tests"):
    if str(place) not in sys.path:
        sys.path.append(str(place))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each worker: two with two threads each crawl


LONG_FIRST = ("ui", "benchmarks", "card", "distill", "cli", "minimaker", "nodes")
"""Folders with files of minutes (browsers, servers, whole runs). A file goes to one worker as a
whole; begun last, it would let the other workers stand idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long begin first; inside a folder the order stays."""
    ranks = {name: rank for rank, name in enumerate(LONG_FIRST)}

    def rank(item: pytest.Item) -> int:
        inside = item.path.relative_to(ROOT / "tests").parts
        return ranks.get(inside[0], len(ranks))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache."""
    os.environ["MCM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A ModelScope-layout folder with random weights, and ``dinov2`` beside it.

    8 frames of 32 px, latents (B, 4, 8, 4, 4). Like most models it brings no network of its own.
    """
    return tiny_modelscope(tmp_path_factory.mktemp("models") / "tiny Modell ü", levels=2)


@pytest.fixture(scope="session")
def smallest_model(tmp_path_factory) -> Path:
    """`tiny_model` with a single level, for what counts operations and not results."""
    return tiny_modelscope(tmp_path_factory.mktemp("models") / "smallest", levels=1)


def tiny_modelscope(folder: Path, levels: int) -> Path:
    """Write a ModelScope-layout model of one or two levels into ``folder``, a DINOv2 beside it."""
    import torch
    from diffusers import AutoencoderTiny, UNet3DConditionModel
    from network_files import tiny_dinov2

    from minimaker.assemble import ABOUT, assemble
    from minimaker.text import WIDTH, build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D")[:levels],
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D")[-levels:],
        block_out_channels=(16, 32)[:levels],
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    small = (16, 16, 16, 16)
    vae = AutoencoderTiny(
        encoder_block_out_channels=small,
        decoder_block_out_channels=small,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=1.0,
    )
    tokenizer = build_tokenizer()
    assemble(folder, unet, vae, build_text_encoder(tokenizer), tokenizer)
    about = {**ABOUT, "name": "tiny", "height": 32, "width": 32}
    del about["subjects"], about["for_trying_out"]
    (folder / "mcm.json").write_text(json.dumps(about), encoding="utf-8")
    tiny_dinov2().save_pretrained(folder.parent / "dinov2")
    return folder


@pytest.fixture(scope="session")
def style_images(tmp_path_factory) -> Path:
    """Twelve captioned stills of the poster style."""
    from minimaker.looks import STYLES, write_style_folder

    folder = tmp_path_factory.mktemp("images") / "poster ä"
    write_style_folder(folder, STYLES["poster"], 12, 64, seed=5)
    return folder


@pytest.fixture(scope="session")
def sd15_parts():
    """The networks of a tiny Stable Diffusion 1.5 and a motion module."""
    from sd15_files import build_parts

    return build_parts()


@pytest.fixture(scope="session")
def sd15_checkpoint(sd15_parts, tmp_path_factory) -> Path:
    """The tiny Stable Diffusion 1.5 as one fp16 file in original keys."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("checkpoints") / "tiny Stil ä.safetensors"
    state = sd15_parts.checkpoint()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def motion_module_file(sd15_parts, tmp_path_factory) -> Path:
    """The tiny motion module in the authors' layout."""
    from safetensors.torch import save_file
    from sd15_files import original_motion

    path = tmp_path_factory.mktemp("motion") / "mm_tiny_v2.safetensors"
    save_file(original_motion(sd15_parts.adapter), path)
    return path
