"""The examples with official LoRAs, run whole at tiny size; and what the server lists and stops."""

from __future__ import annotations

import io
import json
import shutil
import urllib.parse
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui import error_of
from PIL import Image
from stock import TRAINED
from ui_graphs import api_format, node, text_to_images

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"


def example(server, name):
    """UI-format and API-format graph of an example, its frames made small and its steps two."""
    workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    graph = api_format(workflow, server.get("/object_info"))
    for each in graph.values():
        if each["class_type"] == "MCM_EmptyLatentVideo":
            each["inputs"] |= {"width": 64, "height": 64}
        if each["class_type"] == "KSampler":
            each["inputs"]["steps"] = 2
    return workflow, graph


def frames_of(server, entry) -> list[np.ndarray]:
    assert not error_of(entry), error_of(entry)
    (file,) = server.files(entry)
    with av.open(str(file)) as video:
        assert "workflow" in video.metadata
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_the_modelscope_example_runs_with_an_official_lora(comfy_server):
    workflow, graph = example(comfy_server, "3 ModelScope, official LoRA")
    frames = frames_of(comfy_server, comfy_server.run(graph, workflow))
    assert len(frames) == 16
    assert np.stack(frames).std() > 1


def test_the_animatediff_example_runs_with_an_official_lora(comfy_server):
    workflow, graph = example(comfy_server, "2 AnimateDiff, official LoRA")
    for each in graph.values():
        if each["class_type"] == "CheckpointLoaderSimple":
            each |= node("TinyCheckpoint")
    frames = frames_of(comfy_server, comfy_server.run(graph, workflow))
    assert len(frames) == 16
    assert np.stack(frames).std() > 1


def test_without_a_checkpoint_the_server_names_the_file(comfy_server):
    _, graph = example(comfy_server, "2 AnimateDiff, official LoRA")
    status, answer = comfy_server.post("/prompt", {"prompt": graph})
    assert status == 400
    (problem,) = answer["node_errors"].values()
    assert problem["class_type"] == "CheckpointLoaderSimple"
    assert "v1-5-pruned-emaonly.safetensors" in json.dumps(problem)


def test_examples_with_their_pictures_are_in_the_template_browser(comfy_server):
    names = {file.stem for file in EXAMPLES.glob("*.json")}
    assert set(comfy_server.get("/workflow_templates")["mcm-video"]) == names
    assert sorted(name[:2] for name in names) == [f"{n} " for n in range(1, len(names) + 1)]
    for name in names:
        place = urllib.parse.quote(f"/api/workflow_templates/mcm-video/{name}.jpg")
        data = comfy_server.get_bytes(place)
        assert len(data) < 300_000
        moves = getattr(Image.open(io.BytesIO(data)), "n_frames", 1) > 1
        runs = '"mini"' in (EXAMPLES / f"{name}.json").read_text(encoding="utf-8")
        assert moves == runs, name  # a still picture where the model is not here


def test_a_video_model_is_no_place_for_a_motion_module(comfy_server):
    graph = text_to_images()
    graph["2"] = node("MCM_AnimateDiff", model=["1", 0], motion_module="mm_sd15_v2.safetensors")
    graph["5"]["inputs"]["model"] = ["2", 0]
    assert error_of(comfy_server.run(graph)).startswith("MCM_AnimateDiff: ")


def test_windows_without_anything_to_advance_by_are_refused(comfy_server):
    graph = text_to_images()
    graph["9"] = node(
        "MCM_ContextWindows",
        model=["1", 0],
        context_length=8,
        context_overlap=8,
        context_schedule="standard_uniform",
        closed_loop=False,
        fuse_method="pyramid",
    )
    graph["5"]["inputs"]["model"] = ["9", 0]
    assert "`context_overlap`=8 must be 0 to 7" in error_of(comfy_server.run(graph))


def test_new_files_are_listed_at_the_next_refresh(comfy_server, tiny_model):
    models = comfy_server.base / "models"
    shutil.copyfile(models / "loras" / TRAINED, models / "loras" / "new.safetensors")
    shutil.copytree(tiny_model, models / "diffusers" / "author" / "new model")
    info = comfy_server.get("/object_info")
    listed = json.dumps([info["MCM_LoadLora"]["input"], info["MCM_LoadVideoModel"]["input"]])
    assert '"new.safetensors"' in listed
    assert '"author/new model"' in listed


@pytest.mark.parametrize("connected", [True, False])
def test_side_by_side_plays_shorter_clips_again_and_needs_one(comfy_server, connected):
    graph = text_to_images(TRAINED)
    graph["9"] = node("ImageFromBatch", image=["7", 0], batch_index=0, length=3)
    columns = {"images_1": ["7", 0], "images_4": ["9", 0]} if connected else {}
    graph["10"] = node("MCM_SideBySide", **columns, label_1="a label far wider than its small clip")
    graph["8"]["inputs"]["images"] = ["10", 0]
    entry = comfy_server.run(graph)
    if not connected:
        assert "at least one image batch" in error_of(entry)
        return
    assert not error_of(entry), error_of(entry)
    frames = [np.asarray(Image.open(file)) for file in comfy_server.files(entry)]
    assert len(frames) == 8
    right = [frame[-120:-40, -120:-40] for frame in frames]
    assert np.array_equal(right[0], right[3]) and np.array_equal(right[0], right[6])
    assert not np.array_equal(right[0], right[1])


def test_an_interrupt_ends_sampling_at_once(comfy_server):
    socket = comfy_server.socket()
    comfy_server.queue(text_to_images(steps=1000, seed=22))
    asked, kind = False, ""
    try:
        while kind not in ("execution_interrupted", "execution_success", "execution_error"):
            message = socket.recv()
            kind = "" if isinstance(message, bytes) else json.loads(message)["type"]
            if kind == "progress" and not asked:
                asked = True
                comfy_server.post("/interrupt", {})
    finally:
        socket.close()
    assert kind == "execution_interrupted"
