"""What users do in the browser: drop a file on the canvas, press Run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import drop_file, frontend, open_canvas, press_run
from comfyui import error_of
from stock import TRAINED

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
WITHOUT_DOWNLOAD = [file for file in sorted(EXAMPLES.glob("*.json")) if file.stem[0] in "1456"]

SELECT = "kind => app.canvas.selectNode(app.graph.nodes.find(each => each.type === kind))"


@pytest.fixture(scope="module")
def page(comfy_server):
    with frontend(comfy_server) as opened:
        yield opened


def values_of(nodes, kind):
    (found,) = [node["widgets"] for node in nodes if node["type"] == kind]
    return found


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.json")), ids=lambda file: file.stem)
def test_a_dropped_example_opens_whole(page, file):
    nodes = drop_file(page, file)
    assert len(nodes) >= 10
    assert [node["type"] for node in nodes if not node["known"]] == []
    sampler = next(node["widgets"] for node in nodes if node["type"] == "KSampler")
    assert set(sampler) >= {"seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"}
    assert (sampler["seed"], sampler["denoise"]) == (3, 1)


def links_of(graph):
    """Each link by the names of its ends: ids of links may change, what is connected may not."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    return {
        (start, nodes[start]["outputs"][slot]["name"], end, nodes[end]["inputs"][place]["name"])
        for _, start, slot, end, place, *_ in graph["links"]
    }


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.json")), ids=lambda file: file.stem)
def test_every_widget_and_link_of_an_example_survives_the_frontend(page, file):
    drop_file(page, file)
    written = json.loads(file.read_text(encoding="utf-8"))
    opened = page.evaluate("() => app.graph.serialize()")
    assert links_of(opened) == links_of(written)
    values = {node["id"]: node.get("widgets_values") or [] for node in opened["nodes"]}
    for node in written["nodes"]:
        kept, told = values.pop(node["id"]), node["widgets_values"]
        ours = node["type"].startswith("MCM_")
        assert (kept if ours else kept[: len(told)]) == told  # core may append more
    assert not values


def test_a_dropped_lora_opens_its_own_graph_and_runs(page, comfy_server):
    lora = comfy_server.base / "models" / "loras" / TRAINED
    nodes = drop_file(page, lora)
    assert all(node["known"] for node in nodes)
    assert values_of(nodes, "MCM_LoadLora") == {"lora_name": TRAINED, "strength": 1}
    assert values_of(nodes, "MCM_LoadVideoModel")["model_name"] == "mini"
    latents = {"width": 64, "height": 64, "frames": 8, "videos": 1}
    assert values_of(nodes, "MCM_EmptyLatentVideo") == latents
    sampler = values_of(nodes, "KSampler")
    wanted = {"steps": 2, "cfg": 1, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1}
    assert {name: sampler[name] for name in wanted} == wanted
    entry = press_run(page, comfy_server)
    assert not error_of(entry), error_of(entry)
    (video,) = comfy_server.files(entry)
    assert video.stat().st_size > 0


def test_the_info_button_opens_a_nodes_help(page):
    drop_file(page, EXAMPLES / "1 Text to video in 4 steps.json")
    page.evaluate(SELECT, "MCM_LoadLora")
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name="Inputs").wait_for()
    text = page.get_by_role("heading", name="Load MCM LoRA").last.locator("xpath=..").inner_text()
    assert "Applies a few-step LoRA" in text


@pytest.fixture(scope="module", params=["canvas", "Nodes 2.0"])
def either_page(request, page, comfy_server):
    open_canvas(page, comfy_server, nodes2=request.param == "Nodes 2.0")
    return page


@pytest.mark.parametrize("file", WITHOUT_DOWNLOAD, ids=lambda file: file.stem)
def test_a_dropped_example_runs_to_a_video(either_page, comfy_server, file):
    drop_file(either_page, file)
    entry = press_run(either_page, comfy_server)
    assert not error_of(entry), error_of(entry)
    (video,) = comfy_server.files(entry)
    assert video.suffix == ".mp4"
