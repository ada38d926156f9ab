"""A small Wan on a real ComfyUI: the graph in its LoRA, and the size that its node offers."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
import wan_files
from comfyui import error_of
from stock import card, export
from ui_graphs import api_format

LORA = "small wan style.safetensors"


@pytest.fixture(scope="module")
def server(comfy_server):
    """With a small Wan, and a LoRA as the trainer exports it."""
    from trainer.families import load_model
    from trainer.lora.adapter import add_lora, lora_parameters, lora_state

    models = comfy_server.base / "models"
    folder = wan_files.save_small(models / "diffusers" / "small")
    model = load_model(str(folder))
    add_lora(model.network, 2, 2.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(model.network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    told = card(
        title="Small ink", family="wan", base_model=model.name, companions=model.companions,
        base_hash=model.base_hash, frames=9, width=48, height=32, prediction_type="velocity",
        shift=5.0, original_steps=48,
    )  # fmt: skip
    export(lora_state(model.network), models / "loras" / LORA, told)
    return comfy_server


def test_the_graph_in_its_lora_runs_as_it_is(server):
    from trainer.lora.files import read_metadata

    workflow = json.loads(read_metadata(server.base / "models" / "loras" / LORA)["workflow"])
    graph = api_format(workflow, server.get("/object_info"))
    entry = server.run(graph, workflow)
    assert not error_of(entry), error_of(entry)
    (file,) = server.files(entry)
    with av.open(str(file)) as video:
        assert video.streams.video[0].average_rate == 8
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert frames.shape == (9, 32, 48, 3) and frames.std() > 1
    assert "other weights" not in server.log()


def test_its_size_is_offered(server):
    found = server.get("/mcm/video_size?model_name=small")
    assert {name: found[name] for name in ("width", "height", "frames")} == {
        "width": 32, "height": 32, "frames": 5,
    }  # fmt: skip
