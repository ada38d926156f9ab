"""Notices on nodes, what is told about a sampler, and the route that gives sizes."""

from __future__ import annotations

import json
import logging
import sys
import urllib.error
from importlib import import_module
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
import torch
import wan_files
from comfyui import error_of
from safetensors.torch import save_file
from stock import TRAINED, WAN_LORA
from ui_graphs import node, text_to_images

NOTICE, PREVIEW_END = "mcm.notice", "mcm.preview_end"
WAN = "wan2.1_t2v_1.3B_fp16.safetensors"


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


def events(server, graph, workflow=None):
    """What a run sends to the browser: (event, data) pairs, and ("preview", None) for an image."""
    socket, seen = server.socket(), []
    try:
        prompt = server.queue(graph, workflow)
        while True:
            message = socket.recv()
            if isinstance(message, bytes):
                seen.append(("preview", None))
                continue
            told = json.loads(message)
            seen.append((told["type"], told["data"]))
            if told["type"] in ("execution_success", "execution_error"):
                assert told["type"] == "execution_success", error_of(server.wait(prompt))
                return seen
    finally:
        socket.close()


def notices(server, graph, workflow=None):
    return [data for name, data in events(server, graph, workflow) if name == NOTICE]


def graph_with(seed, lora=TRAINED, **sampler):
    graph = text_to_images(lora, seed=seed)
    graph["6"]["inputs"] |= sampler
    return graph


def custom(seed, sigmas, sampler, guider=None):
    """The graph of `text_to_images` with SamplerCustomAdvanced instead of KSampler."""
    graph = text_to_images(TRAINED)
    graph["6"] = node(
        "SamplerCustomAdvanced",
        noise=["10", 0],
        guider=["11", 0],
        sampler=["12", 0],
        sigmas=["13", 0],
        latent_image=["5", 0],
    )
    basic = node("BasicGuider", model=["5", 1], conditioning=["3", 0])
    noise = node("MCM_Noise", seed=seed, noise_order="video")
    return graph | {"10": noise, "11": guider or basic, "12": sampler, "13": sigmas}


def test_wrong_values_are_told_with_the_loras_own(comfy_server):
    workflow = {"id": "a-workflow", "nodes": [], "links": []}
    graph = graph_with(1, steps=20, cfg=7.0, sampler_name="euler", scheduler="normal")
    (told,) = notices(comfy_server, graph, workflow)
    assert (told["node"], told["workflow"]) == ("6", "a-workflow")
    right = {"steps": 2, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple"}
    assert told["settings"] == right
    assert "1 to 8 steps (best: 2)" in told["text"]
    assert f"Node 6: {told['text']}" in comfy_server.log()


@pytest.mark.parametrize(
    ("wrong", "settings"),
    [
        ({"steps": 9}, {"steps": 2}),
        ({"cfg": 3.0}, {"cfg": 1.0}),
        ({"cfg": 0.0}, {"cfg": 1.0}),
        ({"sampler_name": "dpmpp_2m", "steps": 4}, {"sampler_name": "lcm"}),
        ({"scheduler": "karras", "steps": 8}, {"scheduler": "simple"}),
    ],
    ids=str,
)
def test_only_what_is_wrong_is_set(comfy_server, wrong, settings):
    (told,) = notices(comfy_server, graph_with(2, **wrong))
    assert told["settings"] == settings


def test_model_sampling_and_cores_lora_loader_are_advised_too(comfy_server):
    graph = text_to_images(TRAINED, steps=30)
    graph["2"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=TRAINED, strength_model=1.0)
    graph["9"] = node("MCM_ModelSampling", model=["2", 0], timestep_scaling=4.0, original_steps=50)
    graph["5"]["inputs"]["model"] = ["9", 0]
    (told,) = notices(comfy_server, graph)
    assert told["settings"] == {"steps": 4}


def test_a_custom_sampler_is_looked_at_as_it_runs(comfy_server):
    levels = node("BasicScheduler", model=["2", 0], scheduler="karras", steps=8, denoise=1.0)
    guided = node("CFGGuider", model=["5", 1], positive=["3", 0], negative=["4", 0], cfg=5.0)
    euler = node("KSamplerSelect", sampler_name="euler")
    (told,) = notices(comfy_server, custom(3, levels, euler, guided))
    assert told["settings"] == {"cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple"}


RIGHT = [{"steps": steps} for steps in (1, 2, 3, 4, 8)] + [
    {"steps": 4, "cfg": 1.5},
    {"steps": 4, "denoise": 0.5},
    {"steps": 8, "denoise": 0.1},
    {"steps": 4, "scheduler": "sgm_uniform"},
]


@pytest.mark.parametrize("values", RIGHT, ids=str)
def test_right_values_are_not_talked_about(comfy_server, values):
    assert notices(comfy_server, graph_with(4, **values)) == []


@pytest.mark.parametrize("denoise", [1.0, 0.3])
def test_our_own_sampler_and_scheduler_are_right(comfy_server, denoise):
    levels = node("MCM_Scheduler", model=["2", 0], steps=4, denoise=denoise)
    ours = node("MCM_Sampler", noise_order="video")
    assert notices(comfy_server, custom(5, levels, ours)) == []


def test_the_base_model_and_a_lora_of_no_strength_may_take_any_steps(comfy_server):
    usual = {"steps": 9, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
    graph = graph_with(6, **usual)
    graph["2"]["inputs"]["strength"] = 0.0
    assert notices(comfy_server, graph) == []
    assert notices(comfy_server, graph_with(7, lora="", **usual)) == []


def test_previews_end_after_the_last_of_them(comfy_server):
    seen = [name for name, _ in events(comfy_server, graph_with(8, steps=8))]
    assert seen.count(PREVIEW_END) == 1
    before, after = seen[: seen.index(PREVIEW_END)], seen[seen.index(PREVIEW_END) :]
    assert "preview" in before
    assert "preview" not in after


@pytest.fixture
def executing(comfy, monkeypatch):
    """Node "7.0.1" runs, which node "7" of the canvas made; what its client is sent."""
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import reset_progress_state
    from comfy_execution.utils import CurrentNodeContext

    sent = []

    class Server:
        client_id = "browser"

        def send_sync(self, event, data, sid):
            sent.append((event, data, sid))

    prompt = DynamicPrompt({"7": {"class_type": "KSampler", "inputs": {}}})
    prompt.add_ephemeral_node("7.0.1", {"class_type": "KSampler", "inputs": {}}, "7", "7")
    reset_progress_state("prompt", prompt)
    prompt_server = SimpleNamespace(instance=Server())
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=prompt_server))
    with CurrentNodeContext("prompt", "7.0.1"):
        yield sent


def test_a_text_is_told_once_in_a_run_and_on_the_node_of_the_canvas(native, executing):
    notices = native("notices")
    for text in ("First.", "First.", "Second."):
        notices.tell(text, {"cfg": 1.0})
    assert [(event, data["node"], data["text"], sid) for event, data, sid in executing] == [
        (NOTICE, "7", "First.", "browser"),
        (NOTICE, "7", "Second.", "browser"),
    ]


def test_a_run_that_no_browser_queued_sends_nothing(native, executing, caplog):
    sys.modules["server"].PromptServer.instance.client_id = None
    with caplog.at_level(logging.WARNING):
        native("notices").tell("Nobody listens.")
    assert executing == []
    assert "Nobody listens." in caplog.text


def test_outside_a_run_it_is_only_logged(native, caplog):
    with caplog.at_level(logging.WARNING):
        native("notices").tell("Said to the log.")
    assert "Said to the log." in caplog.messages


@pytest.mark.parametrize(
    ("numbers", "even"),
    [
        ([49, 37, 24, 12, -1], True),
        ([24, 12, -1], True),
        ([49, 37, 24], True),
        ([30, -1], True),
        ([49, 33, 16, 0, -1], False),
        ([49, 10, -1], False),
    ],
)
def test_even_steps_over_the_levels(native, numbers, even):
    levels = torch.linspace(0.1, 14.0, 50)
    sigmas = torch.tensor([0.0 if number < 0 else float(levels[number]) for number in numbers])
    assert native("advice").evenly_spread(sigmas, levels) is even


def size(server, **names):
    """What is offered, without the steps of the arrows."""
    found = server.get(f"/mcm/video_size?{urlencode(names, doseq=True)}")
    assert set(found.pop("steps")) == {"width", "height", "frames"}
    return found


@pytest.mark.parametrize(
    ("names", "sides", "frames"),
    [
        ({"model_name": "mini"}, 8, 1),
        ({"motion_module": "mm_sd15_v2.safetensors"}, 8, 1),
        ({"unet_name": WAN}, 16, 4),
        ({"lora_name": WAN_LORA}, 16, 4),
    ],
    ids=["mini", "motion module", "Wan", "LoRA for Wan"],
)
def test_arrows_step_from_one_possible_value_to_the_next(comfy_server, names, sides, frames):
    found = comfy_server.get(f"/mcm/video_size?{urlencode(names)}")
    assert found["steps"] == {"width": sides, "height": sides, "frames": frames}


def test_sizes_of_models_and_loras(comfy_server):
    assert size(comfy_server, model_name="mini") == {"width": 64, "height": 64, "frames": 8}
    tiny = size(comfy_server, model_name="text-to-video-ms-1.7b")
    assert tiny == {"width": 32, "height": 32, "frames": 8}
    both = size(comfy_server, model_name="text-to-video-ms-1.7b", lora_name=TRAINED)
    assert both == {"width": 64, "height": 64, "frames": 8}
    silent = size(comfy_server, model_name="mini", lora_name="modelscopet2v-laion")
    assert silent == {"width": 64, "height": 64, "frames": 8}
    motion = size(comfy_server, motion_module="mm_sd15_v2.safetensors")
    assert motion == {"width": 512, "height": 512, "frames": 16}


@pytest.fixture
def made(comfy_server):
    """Takes folder and name of a model file that is there during the test."""
    made = []

    def path(folder, name):
        made.append(comfy_server.base / "models" / folder / name)
        return made[-1]

    yield path
    for file in made:
        file.unlink()


def test_sizes_of_wan_files_and_their_loras(comfy_server, made):
    wan = {"width": 480, "height": 272, "frames": 33}
    assert size(comfy_server, unet_name=WAN) == wan
    made("loras", "style.pt").write_bytes(b"a style LoRA in a pickle")
    trained = {"width": 64, "height": 48, "frames": 9}
    loras = ["style.pt", WAN_LORA, TRAINED]
    assert size(comfy_server, unet_name=WAN, lora_name=loras) == trained, "the nearest that says"
    assert size(comfy_server, unet_name=WAN, lora_name=loras[:1]) == wan
    assert size(comfy_server, lora_name=WAN_LORA) == trained, "a loader of another pack: GGUF"


@pytest.mark.parametrize("kind", ["expert", "I2V", "5B", "other"])
def test_only_text_to_video_wan_has_a_size(comfy_server, made, kind):
    """The experts of 14B have the tensors of Wan 2.1; ComfyUI runs them, so they have a size."""
    changes = {"I2V": {"in_channels": 36}, "5B": {"in_channels": 48, "out_channels": 48}}
    network = wan_files.build_transformer(**changes.get(kind, {}))
    state = wan_files.original(network.state_dict(), "model.diffusion_model.")
    if kind == "other":
        state = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}
    file = made("diffusion_models", f"wan2.2_{kind}_high_noise.safetensors")
    save_file(state, file)
    if kind == "expert":
        assert size(comfy_server, unet_name=file.name)["frames"] == 33
        return
    with pytest.raises(urllib.error.HTTPError) as refused:
        size(comfy_server, unet_name=file.name)
    assert refused.value.code == 404


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"model_name": "absent"},
        {"model_name": "../diffusers/text-to-video-ms-1.7b"},
        {"model_name": "/etc"},
        {"unet_name": "absent.safetensors"},
        {"unet_name": "../loras/my-wan-style.safetensors"},
        {"motion_module": "../loras/other-family.safetensors"},
        {"lora_name": "../../server.log"},
        {"lora_name": "../diffusers/text-to-video-ms-1.7b/unet/config.json"},
        {"model_name": "mini\x00"},
    ],
    ids=str,
)
def test_other_names_say_nothing(comfy_server, names):
    with pytest.raises(urllib.error.HTTPError) as refused:
        size(comfy_server, **names)
    assert refused.value.code == 404
    assert json.loads(refused.value.read()) == {"error": "unknown or unreadable name"}
