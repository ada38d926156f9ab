"""Nodes in a Python that has ComfyUI's packages and requirements-nodes.txt, and nothing else."""

from __future__ import annotations

import subprocess
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from bare import closure, link, make_python, names_in
from comfyui import ComfyServer, error_of
from PIL import Image
from stock import stock
from ui_graphs import node, text_to_images

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = ("peft", "accelerate", "cv2", "imageio_ffmpeg", "tomlkit", "gradio", "matplotlib")
LORA = "mini-poster.safetensors"


@pytest.fixture(scope="module")
def packages(comfy_path):
    """Distributions of a ComfyUI with this pack's nodes, by name."""
    core = names_in(comfy_path / "requirements.txt")
    return closure(core | names_in(ROOT / "requirements-nodes.txt"))


@pytest.fixture(scope="module")
def server(comfy_path, packages, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    python = make_python(folder / "python", packages)
    for name in TRAINERS:
        run = subprocess.run([python, "-c", f"import {name}"], capture_output=True, text=True)
        assert f"No module named '{name}'" in run.stderr, f"{name} is there: {run.stderr}"
    stock(folder / "comfy" / "models", tiny_model)
    running = ComfyServer(comfy_path, folder / "comfy", ROOT, python=python)
    try:
        yield running
    finally:
        running.stop()


def test_the_nodes_list_is_short():
    assert names_in(ROOT / "requirements-nodes.txt") == {"diffusers"}
    assert names_in(ROOT / "requirements-nodes.txt") < names_in(ROOT / "requirements.txt")


def test_text_to_video_with_a_bundled_lora(server):
    entry = server.run(text_to_images(LORA))
    assert not error_of(entry), error_of(entry)
    frames = np.stack([np.asarray(Image.open(file)) for file in server.files(entry)])
    assert frames.shape == (8, 64, 64, 3)
    assert frames.std() > 10
    assert "is missing" not in server.log()


def test_animatediff(server):
    graph = text_to_images()
    graph["1"] = node("TinyCheckpoint")
    graph["2"] = node("MCM_AnimateDiff", model=["1", 0], motion_module="mm_sd15_v2.safetensors")
    graph["5"]["inputs"]["model"] = ["2", 0]
    graph["6"]["inputs"]["steps"] = 1
    entry = server.run(graph)
    assert not error_of(entry), error_of(entry)
    assert len(server.files(entry)) == 8


def test_lora_info_and_side_by_side(server):
    graph = text_to_images(LORA) | {
        "9": node("MCM_LoraInfo", lora_name=LORA),
        "10": node("PreviewAny", source=["9", 7]),
        "11": node(
            "MCM_SideBySide",
            images_1=["7", 0],
            label_1="left",
            images_2=["7", 0],
            label_2="right",
        ),
    }
    graph["8"]["inputs"]["images"] = ["11", 0]
    entry = server.run(graph)
    assert not error_of(entry), error_of(entry)
    assert "steps" in entry["outputs"]["10"]["text"][0]
    width, _ = Image.open(server.files(entry)[0]).size
    assert width >= 128


def test_without_diffusers_log_and_node_name_the_line_that_mends_it(comfy_path, packages, tmp_path):
    core = {name: each for name, each in packages.items() if name != "diffusers"}
    python = make_python(tmp_path / "python", core)
    (site,) = (tmp_path / "python").glob("lib/python*/site-packages")
    running = ComfyServer(comfy_path, tmp_path / "comfy", ROOT, python=python)
    try:
        file = running.base / "custom_nodes" / "mcm-video" / "requirements-nodes.txt"
        said = (
            "MCM few-step video: ComfyUI's Python is missing diffusers. Run this in a terminal, "
            f"then restart ComfyUI: uv pip install --python {python} -r {file}"  # it has no pip
        )
        assert said in running.log()
        assert "MCM_SideBySide" in running.get("/object_info")
        error = error_of(running.run(text_to_images()))
        assert error.strip() == f"MCM_LoadVideoModel: {said}"
        link(distribution("diffusers"), site)
        assert not error_of(running.run(text_to_images()))
    finally:
        running.stop()
