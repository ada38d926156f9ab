"""Wan on a real ComfyUI: the graph in a LoRA, the examples, and this pack's nodes with it."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui import error_of
from stock import EXPERT_LORAS, WAN_LORA
from ui_graphs import api_format, node

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
UNET, TEXT, VAE = (
    "wan2.1_t2v_1.3B_fp16.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "wan_2.1_vae.safetensors",
)


def tiny(graph, **latents):
    """``graph`` with the text encoder of tiny size, which CLIPLoader does not take for UMT5."""
    for each in graph.values():
        if each["class_type"] == "CLIPLoader":
            each |= node("TinyWanText", clip_name=each["inputs"]["clip_name"])
        if each["class_type"] == "EmptyHunyuanLatentVideo":
            each["inputs"] |= latents
    return graph


def frames_of(server, entry):
    assert not error_of(entry), error_of(entry)
    (file,) = server.files(entry)
    with av.open(str(file)) as video:
        assert video.streams.video[0].average_rate == 16
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def workflow_in(server, lora=WAN_LORA):
    from trainer.lora.files import read_metadata

    path = server.base / "models" / "loras" / lora
    return json.loads(read_metadata(path)["workflow"])


def test_the_graph_in_a_lora_runs_as_it_is(comfy_server):
    workflow = workflow_in(comfy_server)
    graph = tiny(api_format(workflow, comfy_server.get("/object_info")))
    frames = frames_of(comfy_server, comfy_server.run(graph, workflow))
    assert frames.shape == (9, 48, 64, 3) and frames.std() > 1


@pytest.mark.parametrize("which", ["high", "low"])
def test_the_graph_in_the_lora_of_an_expert_runs_as_it_is(comfy_server, which):
    """Two networks, two samplers, nodes of core alone."""
    workflow = workflow_in(comfy_server, EXPERT_LORAS[which])
    graph = tiny(api_format(workflow, comfy_server.get("/object_info")))
    kinds = [each["class_type"] for each in graph.values()]
    assert kinds.count("UNETLoader") == kinds.count("KSamplerAdvanced") == 2
    assert not any(kind.startswith("MCM_") for kind in kinds)
    frames = frames_of(comfy_server, comfy_server.run(graph, workflow))
    assert frames.shape == (9, 48, 64, 3) and frames.std() > 1


def test_the_server_takes_the_graph_with_its_own_text_loader(comfy_server):
    """All files are found and every value is allowed: only then is a graph queued."""
    graph = api_format(workflow_in(comfy_server), comfy_server.get("/object_info"))
    kept = {key: each for key, each in graph.items() if each["class_type"] != "SaveVideo"}
    status, answer = comfy_server.post("/prompt", {"prompt": kept})
    assert status == 400 and answer["error"]["type"] == "prompt_no_outputs"
    status, answer = comfy_server.post("/prompt", {"prompt": graph})
    assert status == 200 and not answer["node_errors"]
    error = error_of(comfy_server.wait(answer["prompt_id"]))
    assert error.startswith("CLIPLoader: "), "which knows the full size only"


@pytest.mark.parametrize("name", ["7 Wan, style LoRA in 4 steps", "8 Wan, teacher beside student"])
def test_the_examples_run(comfy_server, name):
    workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    graph = api_format(workflow, comfy_server.get("/object_info"))
    frames = frames_of(
        comfy_server, comfy_server.run(tiny(graph, width=64, height=48, length=5), workflow)
    )
    assert len(frames) == 5 and frames.std() > 1


def our_nodes(lora=WAN_LORA, **latents):
    """This pack's nodes around core's loaders, to a video."""
    size = {"width": 64, "height": 48, "frames": 9, "videos": 1, **latents}
    return {
        "1": node("UNETLoader", unet_name=UNET, weight_dtype="default"),
        "2": node("TinyWanText", clip_name=TEXT),
        "3": node("VAELoader", vae_name=VAE),
        "4": node("MCM_LoadLora", model=["1", 0], lora_name=lora, strength=1.0),
        "5": node("MCM_EmptyLatentVideo", model=["4", 0], **size),
        "6": node("CLIPTextEncode", clip=["2", 0], text="a red star"),
        "7": node("BasicGuider", model=["5", 1], conditioning=["6", 0]),
        "8": node("MCM_Noise", seed=3, noise_order="video"),
        "9": node("MCM_Scheduler", model=["4", 0], steps=4, denoise=1.0),
        "10": node("MCM_Sampler", noise_order="video"),
        "11": node(
            "SamplerCustomAdvanced", noise=["8", 0], guider=["7", 0], sampler=["10", 0],
            sigmas=["9", 0], latent_image=["5", 0],
        ),
        "12": node("VAEDecode", samples=["11", 0], vae=["3", 0]),
        "13": node("MCM_SideBySide", images_1=["12", 0], label_1="Wan"),
        "14": node("CreateVideo", images=["13", 0], fps=16.0),
        "15": node("SaveVideo", video=["14", 0], filename_prefix="w", format="auto", codec="auto"),
    }  # fmt: skip


def test_this_packs_nodes_sample_it_too(comfy_server):
    frames = frames_of(comfy_server, comfy_server.run(our_nodes()))
    assert len(frames) == 9 and frames.std() > 1


def test_wrong_sizes_and_loras_are_refused_on_their_nodes(comfy_server):
    error = error_of(comfy_server.run(our_nodes(frames=10)))
    assert error.startswith("MCM_EmptyLatentVideo: `frames`=10")
    error = error_of(comfy_server.run(our_nodes("other-family.safetensors")))
    assert error.startswith("MCM_LoadLora: ") and "'animatediff'" in error


def test_a_sampler_with_the_settings_of_the_base_model_is_told(comfy_server):
    graph = our_nodes()
    graph["11"] = node(
        "KSampler", model=["5", 1], positive=["6", 0], negative=["6", 0], latent_image=["5", 0],
        seed=3, steps=20, cfg=6.0, sampler_name="uni_pc", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    assert not error_of(comfy_server.run(graph))
    assert "This few-step MODEL needs sampler 'lcm'" in comfy_server.log()
