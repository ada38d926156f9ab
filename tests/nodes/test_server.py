"""Whole graphs on a real ComfyUI over HTTP and websocket."""

from __future__ import annotations

import copy
import json
import re
import struct
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from comfyui import error_of
from PIL import Image
from stock import PROMPT, TRAINED
from ui_graphs import api_format, node, text_to_images

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows"
PREVIEWS = {1, 4}  # binary websocket messages: an image, and an image with metadata
WITH_THE_MINI_MODEL = sorted(
    file.stem for file in EXAMPLES.glob("*.json") if '"mini"' in file.read_text(encoding="utf-8")
)


def images_of(server, entry) -> np.ndarray:
    """Uint8 (N, H, W, 3) of a run that saved PNG files."""
    assert not error_of(entry), error_of(entry)
    return np.stack([np.asarray(Image.open(file)) for file in server.files(entry)])


@pytest.mark.parametrize("name", WITH_THE_MINI_MODEL)
def test_each_example_becomes_a_video_that_holds_its_workflow(comfy_server, name):
    workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    graph = api_format(workflow, comfy_server.get("/object_info"))
    entry = comfy_server.run(graph, workflow)
    assert not error_of(entry), error_of(entry)
    (file,) = comfy_server.files(entry)
    assert file.suffix == ".mp4"
    with av.open(str(file)) as video:
        assert json.loads(video.metadata["workflow"]) == workflow
        assert set(json.loads(video.metadata["prompt"])) == set(graph)
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == 8
    assert len(frames) == (24 if name == "5 Longer clip" else 8)
    assert all(frame.std() > 1 for frame in frames)
    assert any(not np.array_equal(frames[0], frame) for frame in frames[1:])


def test_two_videos_are_two_videos(comfy_server):
    both = images_of(comfy_server, comfy_server.run(text_to_images(TRAINED, videos=2)))
    assert both.shape == (16, 64, 64, 3)
    assert not np.array_equal(both[:8], both[8:])


def test_the_loras_settings_can_be_connected(comfy_server):
    graph = text_to_images(TRAINED)
    graph["9"] = node("MCM_LoraInfo", lora_name=TRAINED)
    graph["2"]["inputs"]["strength"] = ["9", 6]
    graph["5"]["inputs"] |= {"width": ["9", 3], "height": ["9", 4], "frames": ["9", 5]}
    graph["6"]["inputs"] |= {"steps": ["9", 0], "cfg": ["9", 1]}
    graph["10"] = node("PreviewAny", source=["9", 7])
    entry = comfy_server.run(graph)
    assert not error_of(entry), error_of(entry)
    assert "2 steps (made for 1, 2, 4, 8), CFG 1" in entry["outputs"]["10"]["text"][0]
    assert len(comfy_server.files(entry)) == 8


def test_a_style_lora_recommends_nothing_and_only_what_needs_it_stops(comfy_server):
    from safetensors.torch import save_file

    name = "kohya-style.safetensors"
    tensors = {
        f"lora_unet_mid_block_attentions_0_proj_in.lora_{part}.weight": torch.zeros(shape)
        for part, shape in (("down", (4, 8)), ("up", (8, 4)))
    }
    file = comfy_server.base / "models" / "loras" / name
    save_file(tensors, file, {"ss_network_module": "networks.lora"})
    try:
        graph = text_to_images(TRAINED)
        graph["9"] = node("MCM_LoraInfo", lora_name=name)
        graph["6"]["inputs"]["steps"] = ["9", 0]
        graph["10"] = node("PreviewAny", source=["9", 7])
        entry = comfy_server.run(graph)
    finally:
        file.unlink()
    assert "Not a few-step LoRA" in entry["outputs"]["10"]["text"][0]
    assert not comfy_server.files(entry)


def test_cores_lora_loader_with_model_sampling_equals_load_mcm_lora(comfy_server):
    ours = text_to_images(TRAINED)
    graph = copy.deepcopy(ours)
    graph["2"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=TRAINED, strength_model=1.0)
    graph["9"] = node("MCM_ModelSampling", model=["2", 0], timestep_scaling=4.0, original_steps=50)
    graph["5"]["inputs"]["model"] = ["9", 0]
    first, second = (images_of(comfy_server, comfy_server.run(each)) for each in (ours, graph))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("node_id", "name", "value", "told"),
    [
        ("1", "model_name", "../../secret", "is not a name inside models/diffusers"),
        ("1", "model_name", "absent", "was not found"),
        ("5", "videos", 0, "smaller than min"),
        ("6", "model", ["3", 0], "mismatch"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(comfy_server, node_id, name, value, told):
    graph = text_to_images(TRAINED)
    graph[node_id]["inputs"][name] = value
    status, answer = comfy_server.post("/prompt", {"prompt": graph})
    assert status == 400
    errors = answer["node_errors"][node_id]["errors"]
    assert told in " ".join(f"{each['message']} {each['details']}" for each in errors)


@pytest.mark.parametrize(
    ("node_id", "changes", "told"),
    [
        ("1", {"weight_dtype": "int4"}, "MCM_LoadVideoModel: `weight_dtype`='int4'"),
        (
            "2",
            {"lora_name": "absent.safetensors"},
            "`lora_name`='absent.safetensors' was not found",
        ),
        (
            "5",
            {"frames": 12},
            "MCM_EmptyLatentVideo: `frames`=12 is not supported by 'mini'; use 8",
        ),
    ],
)
def test_what_fails_in_the_run_says_why(comfy_server, node_id, changes, told):
    graph = text_to_images(TRAINED)
    inputs = graph[node_id]["inputs"] | changes
    graph[node_id]["inputs"] = {name: each for name, each in inputs.items() if each is not None}
    status, answer = comfy_server.post("/prompt", {"prompt": graph, "client_id": "a test"})
    if status == 200:
        assert told in error_of(comfy_server.wait(answer["prompt_id"]))
    else:  # newer versions look into lists themselves, before the run
        (value,) = [each for each in changes.values() if isinstance(each, str)]
        (problem,) = answer["node_errors"].values()
        assert problem["class_type"] in told or problem["class_type"] == "MCM_LoadLora"
        assert value in problem["errors"][0]["details"]


def test_frames_of_another_latent_node_are_checked_too(comfy_server):
    graph = text_to_images(TRAINED)
    graph["9"] = node("EmptyLatentImage", width=64, height=64, batch_size=12)
    graph["6"]["inputs"] |= {"latent_image": ["9", 0], "model": ["2", 0]}
    assert "KSampler: `frames`=12 is not supported by 'mini'" in error_of(comfy_server.run(graph))


def test_a_lora_of_another_family_is_refused_by_name(comfy_server):
    error = error_of(comfy_server.run(text_to_images("other-family.safetensors")))
    assert "MCM_LoadLora: 'other-family.safetensors' is a LoRA for 'animatediff'" in error
    assert "base model 'SD'" in error


def test_previews_of_several_frames_arrive_while_sampling(comfy_server):
    socket = comfy_server.socket()
    try:
        prompt, kinds, images, done = "", [], set(), False
        prompt = comfy_server.queue(text_to_images(TRAINED, steps=8, seed=11))
        while not done:
            message = socket.recv()
            if isinstance(message, bytes):
                kinds.append(struct.unpack(">I", message[:4])[0])
                images.add(message)
            else:
                told = json.loads(message)
                finished = told["data"].get("prompt_id") == prompt and not told["data"].get("node")
                done = told["type"] in ("execution_success", "execution_error") and finished
    finally:
        socket.close()
    assert told["type"] == "execution_success", told
    assert kinds and set(kinds) <= PREVIEWS
    assert len(images) > 1


def test_memory_is_given_back_and_the_seed_still_means_the_same_clip(comfy_server):
    graph = text_to_images(TRAINED, seed=21)
    first = images_of(comfy_server, comfy_server.run(graph))
    for _ in range(60):
        status, _ = comfy_server.post("/free", {"unload_models": True, "free_memory": True})
        assert status == 200
        time.sleep(1)  # the server's worker frees when it wakes, and would take the graph first
        entry = comfy_server.run(graph)
        told = entry["status"]["messages"]
        (cached,) = [data["nodes"] for name, data in told if name == "execution_cached"]
        if not cached:
            break
    assert cached == []
    assert np.array_equal(first, images_of(comfy_server, entry))


def test_the_clip_of_the_command_line_comes_out_the_same(comfy_server, tmp_path, monkeypatch):
    from trainer.cli.main import main
    from trainer.evaluate import generate

    lora = comfy_server.base / "models" / "loras" / TRAINED
    pixels, made = [], generate.generate_clips
    monkeypatch.setattr(
        generate, "generate_clips", lambda *a, **k: pixels.append(made(*a, **k)) or pixels[-1]
    )
    words = ["--lora", str(lora), "--prompt", PROMPT, "--steps", "4", "--seed", "5", "--scale", "1"]
    assert main(["sample", "--device", "cpu", *words, "--out", str(tmp_path / "clip")]) == 0

    graph = text_to_images(TRAINED)
    graph["3"]["inputs"]["text"] = PROMPT
    graph |= {
        "6": node(
            "SamplerCustomAdvanced",
            noise=["10", 0],
            guider=["11", 0],
            sampler=["12", 0],
            sigmas=["13", 0],
            latent_image=["5", 0],
        ),
        "10": node("MCM_Noise", seed=5, noise_order="video"),
        "11": node("BasicGuider", model=["2", 0], conditioning=["3", 0]),
        "12": node("MCM_Sampler", noise_order="video"),
        "13": node("MCM_Scheduler", model=["2", 0], steps=4, denoise=1.0),
    }
    ours = images_of(comfy_server, comfy_server.run(graph)).astype(np.float64)

    clip = pixels[0][0].movedim(0, -1).double().numpy()  # (F, H, W, 3) in [-1, 1]
    as_saved = np.floor(np.clip(clip / 2 + 0.5, 0, 1) * 255)  # Save Image cuts, it does not round
    difference = np.linalg.norm(ours - as_saved) / np.linalg.norm(as_saved)
    print(f"relative difference of the frames: {difference:.1e}")
    assert difference <= 1e-3
    files = sorted((tmp_path / "clip").glob("*.png"))
    written = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.abs(ours - written).max() <= 1


def test_the_pack_loads_and_says_how_long_it_took(comfy_server):
    (told,) = re.findall(r"([\d.]+) seconds(.*): .*mcm-video", comfy_server.log())
    print(f"import time in this run: {told[0]} s")
    assert told[1] == ""  # else " (IMPORT FAILED)"
