from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, UNet3DConditionModel

from minimaker.teacher import SCHEDULER
from minimaker.text import WIDTH, build_text_encoder, build_tokenizer, save_tokenizer


@pytest.fixture(scope="session")
def untrained_folder(tmp_path_factory) -> Path:
    """A diffusers folder of a ModelScope model of a few layers with random weights."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
        block_out_channels=(16,),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    unet.save_pretrained(folder / "unet")
    width = (8, 8, 8, 8)
    vae = AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width)
    vae.save_pretrained(folder / "vae")
    tokenizer = build_tokenizer()
    build_text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    save_tokenizer(tokenizer, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    contents = {"scheduler/scheduler_config.json": SCHEDULER, "mcm.json": {"frames": 8}}
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder
