"""How people find the pack in the frontend: search, templates, blueprints; and what they see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import drop_file, frontend, press_run
from comfyui import error_of

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
FIRST = "1 Text to video in 4 steps"
LOADERS = {"MCM_LoadVideoModel", "MCM_AnimateDiff", "MCM_LoadLora"}
WORDS = ("few step", "lcm", "consistency", "turbo", "lightning", "fast", "distill", "style")
VIDEO_WORDS = ("t2v", "text to video", "zeroscope", "animatediff")
SEARCH = """query => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;
    return stores.get("nodeDef").nodeSearchService.searchNode(query).map(each => each.name);
}"""
# The greatest extent of every node while the graph runs, previews included.
WATCH = """() => {
    const grown = window.mcmGrown = {};
    const note = (id, [x, y, width, height]) => {
        const last = grown[id] ?? [x, y, 0, 0];
        grown[id] = [x, y, Math.max(last[2], width), Math.max(last[3], height)];
    };
    window.mcmTimer = setInterval(() => {
        if (!LiteGraph.vueNodesMode) {
            for (const {id, pos, size} of app.graph.nodes)
                note(id, [pos[0], pos[1] - 30, size[0], size[1] + 30]);
            return;
        }
        const shown = [...document.querySelectorAll("[data-node-id]")];
        const first = shown[0].getBoundingClientRect();
        const scale = first.width / shown[0].offsetWidth;
        for (const each of shown) {
            const {x, y, width, height} = each.getBoundingClientRect();
            const box = [x - first.x, y - first.y, width, height];
            note(each.dataset.nodeId, box.map(length => length / scale));
        }
    }, 40);
}"""


def test_of_our_nodes_a_loader_is_found_first(comfy_server):
    """Before ComfyUI 0.11 a node is found by its names alone."""
    known = "search_aliases" in comfy_server.get("/object_info")["KSampler"]
    with frontend(comfy_server) as page:
        found = {word: page.evaluate(SEARCH, word) for word in (*WORDS, *VIDEO_WORDS, "lora")}
    for word, names in found.items():
        ours = [name for name in names if name.startswith("MCM_")]
        assert not known or word == "lora" or ours[0] in LOADERS, f"{word}: {ours}"
    assert "MCM_LoadLora" in found["lora"]


def open_templates(page: Any) -> Any:
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("MCM few-step video").first.click()
    card = page.get_by_test_id(f"template-workflow-{FIRST}")
    card.locator("img").wait_for()
    return card


def test_the_picture_of_a_template_moves(comfy_server):
    with frontend(comfy_server) as page:
        card = open_templates(page)
        loaded = "card => card.querySelector('img').complete"
        page.wait_for_function(loaded, arg=card.element_handle())
        first = card.locator("img").screenshot(animations="allow")
        for _ in range(100):
            if card.locator("img").screenshot(animations="allow") != first:
                return
        pytest.fail("The picture stood still in 100 screenshots.")


def test_a_template_opens_by_a_click(comfy_server):
    with frontend(comfy_server) as page:
        open_templates(page).click()
        page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'MCM_LoadLora')")


@pytest.mark.parametrize("nodes2", [False, True], ids=["canvas", "nodes2"])
def test_no_preview_covers_another_node(comfy_server, nodes2):
    with frontend(comfy_server, 1900, 1100, nodes2=nodes2) as page:
        drop_file(page, EXAMPLES / f"{FIRST}.json")
        page.evaluate(WATCH)
        assert not error_of(press_run(page, comfy_server))
        page.wait_for_timeout(1000)
        boxes = page.evaluate("() => {clearInterval(window.mcmTimer); return window.mcmGrown}")
        types = page.evaluate("() => Object.fromEntries(app.graph.nodes.map(n => [n.id, n.type]))")
    shown = [(types[number], box) for number, box in boxes.items() if number in types]
    assert len(shown) == len(types)
    for index, (kind, (x, y, width, height)) in enumerate(shown):
        for other, (left, top, wide, high) in shown[:index]:
            apart = x >= left + wide or left >= x + width or y >= top + high or top >= y + height
            assert apart, f"{kind} and {other}: {[x, y, width, height]} {[left, top, wide, high]}"


def test_a_blueprint_is_in_the_search_and_runs(comfy_server):
    with frontend(comfy_server) as page:
        box = page.locator("#graph-canvas").bounding_box()
        page.mouse.dblclick(box["x"] + 500, box["y"] + 200)
        page.locator("input:focus").fill("MCM text to video")
        page.get_by_role("option").filter(has_text="MCM text to video").first.wait_for()
        page.keyboard.press("Enter")
        page.wait_for_function("() => app.graph.nodes.some(node => node.subgraph)")
        for _ in range(100):  # in newer frontends it hangs on the mouse, once the search has gone
            if page.evaluate("() => app.canvas.state.ghostNodeId == null"):
                break
            page.mouse.click(box["x"] + 450, box["y"] + 250)
            page.wait_for_timeout(200)
        page.evaluate("""() => {
            const [whole] = app.graph.nodes;
            const values = {steps: 2, frames: 16, seed: 5};
            for (const each of whole.widgets) {
                const name = each.label ?? each.name;
                if (name in values) each.value = values[name];
            }
            const save = LiteGraph.createNode("SaveVideo");
            app.graph.add(save);
            whole.connect(0, save, 0);
        }""")
        entry = press_run(page, comfy_server)
    assert not error_of(entry), error_of(entry)
    (video,) = comfy_server.files(entry)
    assert video.suffix == ".mp4"
    values = [node["inputs"] for node in entry["prompt"][2].values()]
    assert any(each.get("steps") == 2 and each.get("seed") == 5 for each in values), values
    assert any(each.get("frames") == 16 for each in values)


def test_help_pages_fit_their_panel(comfy_server):
    select = "() => app.canvas.selectNode(app.graph.nodes.find(n => n.type === 'MCM_LoadLora'))"
    wide = """() => [...document.querySelectorAll(".node-help-content *")]
        .filter(each => each.clientWidth && each.scrollWidth > each.clientWidth + 1)
        .map(each => each.tagName)"""
    with frontend(comfy_server) as page:
        drop_file(page, EXAMPLES / f"{FIRST}.json")
        page.evaluate(select)
        page.get_by_test_id("info-button").click()
        page.get_by_role("heading", name="Inputs").wait_for()
        assert page.evaluate(wide) == []
