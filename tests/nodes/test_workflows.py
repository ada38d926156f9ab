"""The graphs that are built without ComfyUI fit the real one, widget by widget."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from ui_graphs import FRONTEND_ONLY, api_format, inputs_of, is_widget, widgets_of

from trainer.lora.blueprint import Shown, build_blueprint
from trainer.lora.graph import KINDS, Node, build_graph
from trainer.lora.metadata import LoraCard
from trainer.lora.needs import NOT_PUBLISHED
from trainer.lora.workflow import lora_workflow

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
BLUEPRINTS = FOLDER.parent / "subgraphs"
FOLDERS = (
    "loras", "checkpoints", "diffusers", "animatediff_models", "diffusion_models", "text_encoders",
    "vae",
)  # fmt: skip
PLACE = "example_workflows_build"
ANIMATEDIFF = {
    "family": "animatediff",
    "base_model": "sd15",
    "base_file": "sd15.safetensors",
    "motion_module": "mm_sd_v15_v2.ckpt",
}
WAN = {
    "family": "wan",
    "base_model": "wan",
    "base_file": "wan2.1_t2v_1.3B_fp16.safetensors",
    "companions": {"text_encoder": "my umt5.safetensors", "vae": "a folder"},
    "prediction_type": "velocity",
    "shift": 3.0,
    "width": 480,
    "height": 272,
    "frames": 33,
    "fps": 16,
}
CARD = LoraCard(
    title="Ink",
    family="modelscope",
    base_model="mini",
    base_hash="",
    base_license="Apache-2.0",
    frames=8,
    width=64,
    height=64,
    fps=8,
)


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location(PLACE, FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def object_info(comfy_server):
    return comfy_server.get("/object_info")


@pytest.fixture(scope="module")
def graphs(build):
    found = {name: json.loads(build.example(name)) for name in build.EXAMPLES}
    motion = dataclasses.replace(CARD, **ANIMATEDIFF)
    wan = dataclasses.replace(CARD, **WAN)
    for name, card in (
        ("a LoRA", CARD), ("an AnimateDiff LoRA", motion), ("a Wan LoRA", wan),
    ):  # fmt: skip
        found[name] = json.loads(lora_workflow(card, "ink.safetensors", "a red star"))
    return found


def test_the_files_are_what_the_builder_writes(build):
    assert {file.stem for file in FOLDER.glob("*.json")} == set(build.EXAMPLES)
    for name in build.EXAMPLES:
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == build.example(name), name


def test_node_types_are_those_of_the_server(object_info):
    for name, kind in KINDS.items():
        if name in FRONTEND_ONLY:
            continue
        info = object_info[name]
        sockets = [(label, of) for label, of, _ in inputs_of(info) if not is_widget(of)]
        assert list(kind.inputs) == sockets, name
        ours = name.startswith("MCM_")
        known = widgets_of(info) if ours else widgets_of(info)[: len(kind.widgets)]
        assert list(kind.widgets) == known, name  # core may append more
        outputs = list(zip(info["output_name"], info["output"], strict=True))
        assert list(kind.outputs) == (outputs if ours else outputs[: len(kind.outputs)]), name


def test_values_are_ones_the_node_takes(graphs, object_info):
    for name, graph in graphs.items():
        for node in api_format(graph, object_info).values():
            for label, kind, options in inputs_of(object_info[node["class_type"]]):
                value = node["inputs"].get(label)
                files = label.endswith("_name") or label == "motion_module"
                choices = kind if isinstance(kind, list) else options.get("options")
                if choices and not files:
                    keys = [one["key"] if isinstance(one, dict) else one for one in choices]
                    assert value in keys, f"{name}: {label}"
                if kind in ("INT", "FLOAT"):
                    assert options["min"] <= value <= options["max"], f"{name}: {label}"


def test_required_sockets_are_connected(graphs, object_info):
    for name, graph in graphs.items():
        for node in api_format(graph, object_info).values():
            required = object_info[node["class_type"]]["input"].get("required", {})
            assert set(required) <= set(node["inputs"]), f"{name}: {node['class_type']}"


def test_nodes_lie_apart(graphs):
    for name, graph in graphs.items():
        boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
        for index, (x, y, w, h) in enumerate(boxes):
            for left, top, width, height in boxes[:index]:
                apart = x >= left + width or left >= x + w
                # A node's title bar lies 30 pixels above its position.
                assert apart or y - 30 >= top + height or top - 30 >= y + h, name


def test_nodes_say_which_pack_they_need(graphs):
    for graph in graphs.values():
        for node in graph["nodes"]:
            ours = node["type"].startswith("MCM_")
            assert node["properties"]["cnr_id"] == ("mcm-video" if ours else "comfy-core")
            assert node["properties"]["ver"]


def test_missing_files_are_named_by_a_widgets_value_and_an_address(graphs):
    named = [
        (model, node)
        for name, graph in graphs.items()
        for node in graph["nodes"]
        for model in node["properties"].get("models", [])
    ]
    assert len(named) >= 5
    for model, node in named:
        assert model["url"].startswith("https://huggingface.co/") or model["url"] == NOT_PUBLISHED
        assert model["directory"] in FOLDERS
        assert any(model["name"].startswith(str(value)) for value in node["widgets_values"]), model


def test_a_loras_graph_names_every_file_its_folder_and_a_public_address():
    card = dataclasses.replace(CARD, trigger="in ink", base_hash="ab12cd34ef" * 6, **ANIMATEDIFF)
    graph = json.loads(lora_workflow(card, "ink.safetensors", "a red star"))
    told = {
        model["name"]: (model["directory"], model["url"])
        for node in graph["nodes"]
        for model in node["properties"].get("models", [])
    }
    motion = "https://huggingface.co/guoyww/animatediff/resolve/main/mm_sd_v15_v2.ckpt"
    assert told == {
        "sd15.safetensors": ("checkpoints", NOT_PUBLISHED),
        "mm_sd_v15_v2.ckpt": ("animatediff_models", motion),
        "ink.safetensors": ("loras", NOT_PUBLISHED),
    }
    text = next(node for node in graph["nodes"] if node["type"] == "MarkdownNote")["widgets_values"]
    for words in ("**in ink**", "**checkpoints/sd15.safetensors**", motion, "ab12cd34ef..."):
        assert words in text[0]


def test_a_wan_loras_graph_is_of_core_nodes_with_its_shift_and_the_files_of_the_run():
    graph = json.loads(lora_workflow(dataclasses.replace(CARD, **WAN), "ink.safetensors", "a cat"))
    nodes = {node["type"]: node["widgets_values"] for node in graph["nodes"]}
    assert not [kind for kind in nodes if kind.startswith("MCM_")]
    assert nodes["ModelSamplingSD3"] == [3.0]
    assert nodes["EmptyHunyuanLatentVideo"] == [480, 272, 33, 1]
    assert nodes["KSampler"] == [0, "fixed", 4, 1.0, "lcm", "simple", 1.0]
    assert nodes["LoraLoaderModelOnly"] == ["ink.safetensors", 1.0]
    assert nodes["CreateVideo"] == [16.0]
    told = {
        model["name"]: (model["directory"], model["url"].rsplit("/", 3)[-3:])
        for node in graph["nodes"]
        for model in node["properties"].get("models", [])
    }
    files = {
        "wan2.1_t2v_1.3B_fp16.safetensors": "diffusion_models",
        "my umt5.safetensors": "text_encoders",
        "wan_2.1_vae.safetensors": "vae",
        "ink.safetensors": "loras",
    }
    assert {name: place for name, (place, _) in told.items()} == files
    for name in ("wan2.1_t2v_1.3B_fp16.safetensors", "wan_2.1_vae.safetensors"):
        assert told[name][1] == ["split_files", files[name], name]


def test_a_wan_folder_has_the_file_with_the_same_weights_in_its_graph():
    whole = {**WAN, "base_model": "Wan2.1-T2V-14B-Diffusers", "base_file": "", "companions": {}}
    graph = json.loads(lora_workflow(dataclasses.replace(CARD, **whole), "ink.safetensors", "x"))
    names = {node["type"]: node["widgets_values"][0] for node in graph["nodes"] if "Loader" in
             node["type"]}  # fmt: skip
    assert names["UNETLoader"] == "wan2.1_t2v_14B_fp16.safetensors"
    assert names["CLIPLoader"] == "umt5_xxl_fp8_e4m3fn_scaled.safetensors"


def test_a_motion_adapter_folder_is_no_missing_file():
    card = dataclasses.replace(CARD, **{**ANIMATEDIFF, "motion_module": "my adapter"})
    graph = json.loads(lora_workflow(card, "ink.safetensors", "a red star"))
    node = next(node for node in graph["nodes"] if node["type"] == "MCM_AnimateDiff")
    assert all(model["name"] != "my adapter" for model in node["properties"]["models"])
    assert "**animatediff_models/my adapter**" in json.dumps(graph)


def test_the_decoder_stands_beside_its_sampler_and_nothing_below_it(graphs):
    for name, graph in graphs.items():
        at = {node["id"]: node for node in graph["nodes"]}
        for _, start, _, end, *_ in graph["links"]:
            if (at[start]["type"], at[end]["type"]) == ("KSampler", "VAEDecode"):
                assert at[end]["pos"][1] == at[start]["pos"][1], name
                assert at[end]["pos"][0] > at[start]["pos"][0] + at[start]["size"][0], name


def test_the_blueprints_are_what_the_builder_writes():
    spec = importlib.util.spec_from_file_location("subgraphs_build", BLUEPRINTS / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    made = build.blueprints()
    assert {file.stem for file in BLUEPRINTS.glob("*.json")} == set(made)
    for name, blueprint in made.items():
        written = (BLUEPRINTS / f"{name}.json").read_text(encoding="utf-8")
        assert written == build.as_text(blueprint), name


def test_a_blueprint_shows_only_widgets_that_its_nodes_have():
    node = Node("MarkdownNote", {"text": "x"})
    with pytest.raises(ValueError, match="MarkdownNote has no widget steps"):
        build_blueprint("x", "", [node], [Shown("steps", "INT", node, "steps")], [])


def test_a_node_without_its_values_is_refused():
    with pytest.raises(ValueError, match="MCM_LoadLora: strength missing or not known"):
        Node("MCM_LoadLora", {"lora_name": "a"})
    with pytest.raises(ValueError, match="VAEDecode: clip missing or not known"):
        Node("VAEDecode", {}, {"clip": (Node("VAEDecode"), "IMAGE")})


def test_links_are_written_on_both_ends():
    graph = build_graph([Node("MarkdownNote", {"text": "x"})])
    assert (graph["last_node_id"], graph["last_link_id"]) == (1, 0)
    graph = json.loads(lora_workflow(CARD, "ink.safetensors", "a red star"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["links"]
    for number, start, out, end, slot, kind in graph["links"]:
        assert number in nodes[start]["outputs"][out]["links"]
        assert nodes[end]["inputs"][slot]["link"] == number
        assert nodes[start]["outputs"][out]["type"] == nodes[end]["inputs"][slot]["type"] == kind
