"""What the pack shows on the canvas while one works, in the classic canvas and in Nodes 2.0."""

from __future__ import annotations

import copy
import json
from itertools import count
from pathlib import Path

import pytest
from browser import drop_file, frontend, press_run
from comfyui import error_of
from stock import WAN_LORA

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
WRONG = {"steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "normal"}
RIGHT = {"steps": 4, "cfg": 1, "sampler_name": "lcm", "scheduler": "simple"}
NOTICE = ".mcm-notice"
USE = "Use these settings"

HELPERS = """window.mcm = {
    all(graph = app.rootGraph ?? app.graph) {
        const inside = each => each.subgraph ? mcm.all(each.subgraph) : [];
        return graph.nodes.flatMap(each => [each, ...inside(each)]);
    },
    node(kind) { return mcm.all().find(each => each.type === kind); },
    widget(kind, name) { return mcm.node(kind).widgets.find(each => each.name === name); },
    values(kind) {
        const kept = mcm.node(kind).widgets.filter(each => each.serialize !== false);
        return Object.fromEntries(kept.map(each => [each.name, each.value]));
    },
    set(kind, values) {
        for (const [name, value] of Object.entries(values)) {
            const widget = mcm.widget(kind, name);
            widget.value = value;
            widget.callback?.(value, app.canvas, mcm.node(kind));
        }
    },
    add(kind) {
        const node = LiteGraph.createNode(kind);
        app.graph.add(node);
        return node;
    },
    link(from, output, to, input) {
        const slot = (slots, name) => slots.findIndex(each => each.name === name);
        from.connect(slot(from.outputs, output), to, slot(to.inputs, input));
    },
    saved() {  // Save Video makes room for its video by itself
        const nodes = mcm.all().filter(each => each.type !== "SaveVideo");
        return JSON.stringify(nodes.map(each => each.serialize()).map(each => [
            each.id, each.type, each.size.map(Math.round), each.widgets_values, each.properties,
            (each.inputs ?? []).map(input => input.name),
        ]));
    },
    wide(width) {
        const nodes = mcm.all().filter(each => each.type === "MCM_EmptyLatentVideo");
        return nodes.filter(each => each.widgets[0].value === width).length;
    },
    async settled() {  // sizes and positions stay for some drawings
        for (let before = "", same = 0; same < 20; before = mcm.saved()) {
            await new Promise(requestAnimationFrame);
            same = before === mcm.saved() ? same + 1 : 0;
        }
    },
};"""


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def page(request, comfy_server):
    with frontend(comfy_server, nodes2=request.param) as opened:
        opened.evaluate(HELPERS)
        assert opened.evaluate("() => Boolean(LiteGraph.vueNodesMode)") == request.param
        yield opened


SEEDS = count(1000)  # what ran before would not run again


@pytest.fixture
def sampler(page):
    """The text-to-video example with KSampler's usual values, which are wrong for it."""
    drop_file(page, EXAMPLES / "1 Text to video in 4 steps.json")
    page.evaluate("values => mcm.set('KSampler', values)", {**WRONG, "seed": next(SEEDS)})
    page.evaluate("() => mcm.settled()")


def run(page, server):
    entry = press_run(page, server)
    assert not error_of(entry), error_of(entry)


def values(page, kind):
    return page.evaluate("kind => mcm.values(kind)", kind)


def test_wrong_values_are_told_on_the_node_and_set_by_its_button(page, comfy_server, sampler):
    saved = page.evaluate("() => mcm.saved()")
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    text = page.locator(NOTICE).inner_text()
    assert "sampler 'lcm', scheduler 'simple', CFG 1 and 1 to 8 steps (best: 4)" in text
    assert "20 steps, CFG 7, sampler 'euler', another scheduler" in text
    page.evaluate("() => mcm.settled()")
    assert page.evaluate("() => mcm.saved()") == saved
    page.get_by_role("button", name=USE).click()
    page.locator(NOTICE).wait_for(state="detached")
    assert {name: values(page, "KSampler")[name] for name in RIGHT} == RIGHT
    run(page, comfy_server)
    page.wait_for_function("() => app.nodeOutputs && Object.keys(app.nodeOutputs).length > 0")
    assert page.locator(NOTICE).count() == 0


def test_a_notice_goes_with_the_next_run_that_has_none(page, comfy_server, sampler):
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    page.evaluate("values => mcm.set('KSampler', values)", RIGHT)
    run(page, comfy_server)
    page.locator(NOTICE).wait_for(state="detached")


def test_a_notice_can_be_closed_and_the_node_is_as_it_was(page, comfy_server, sampler):
    before = page.evaluate("() => [...mcm.node('KSampler').size]")
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    page.locator(NOTICE).get_by_role("button", name="Close").click()
    page.locator(NOTICE).wait_for(state="detached")
    page.evaluate("() => mcm.settled()")
    assert page.evaluate("() => [...mcm.node('KSampler').size]") == pytest.approx(before, abs=1)
    assert values(page, "KSampler")["steps"] == 20


def test_undo_and_another_workflow_do_not_lose_or_misplace_it(page, comfy_server, sampler):
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    workflow = page.evaluate("() => (app.rootGraph ?? app.graph).serialize()")
    other = copy.deepcopy(workflow)
    other["id"] = "00000000-0000-4000-8000-000000000001"
    page.evaluate("workflow => app.loadGraphData(workflow)", other)
    page.locator(NOTICE).wait_for(state="detached")
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.locator(NOTICE).wait_for()
    changed = copy.deepcopy(workflow)
    (node,) = [each for each in changed["nodes"] if each["type"] == "KSampler"]
    node["widgets_values"][2] = 4
    page.evaluate("workflow => app.loadGraphData(workflow)", changed)
    page.locator(NOTICE).wait_for(state="detached")


def test_it_stays_when_another_change_is_undone(page, comfy_server, sampler):
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    workflow = page.evaluate("() => (app.rootGraph ?? app.graph).serialize()")
    for _ in range(2):  # as undo does: the same graph, drawn anew
        page.evaluate("workflow => app.loadGraphData(workflow, false)", workflow)
        page.evaluate("() => mcm.settled()")
        page.wait_for_function("() => document.querySelector('.mcm-notice')?.isConnected")
    page.locator(NOTICE).filter(visible=True).wait_for()


def test_it_goes_when_the_values_are_set_by_hand(page, comfy_server, sampler):
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    page.evaluate("() => mcm.set('KSampler', {seed: 77})")
    page.wait_for_timeout(1000)
    assert page.locator(NOTICE).count() == 1, "the seed is not what it speaks of"
    page.evaluate("() => mcm.set('KSampler', {steps: 4})")
    page.locator(NOTICE).wait_for(state="detached")


@pytest.mark.parametrize(("chosen", "called"), [("ddim", "'ddim'"), ("uni_pc", "'uni_pc'")])
def test_it_names_the_sampler_that_was_chosen_and_nothing_that_is_right(
    page, comfy_server, sampler, chosen, called
):
    page.evaluate("values => mcm.set('KSampler', values)", {**RIGHT, "sampler_name": chosen})
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    text = page.locator(NOTICE).inner_text()
    assert f"This run uses sampler {called}, so expect" in text


def test_it_works_inside_a_subgraph(page, comfy_server, sampler):
    page.evaluate("() => void app.graph.convertToSubgraph(new Set([mcm.node('KSampler')]))")
    assert page.evaluate("() => app.graph.nodes.every(each => each.type !== 'KSampler')")
    page.evaluate("() => mcm.settled()")
    saved = page.evaluate("() => mcm.saved()")
    run(page, comfy_server)
    notice = page.locator(NOTICE).filter(visible=True)  # there is another on the node inside
    notice.wait_for()
    page.evaluate("() => mcm.settled()")
    assert page.evaluate("() => mcm.saved()") == saved
    notice.get_by_role("button", name=USE).click()
    page.wait_for_function("() => document.querySelectorAll('.mcm-notice').length === 0")
    assert {name: values(page, "KSampler")[name] for name in RIGHT} == RIGHT


CUSTOM = """() => {
    const old = mcm.node("KSampler");
    const [model, latent] = [mcm.node("MCM_EmptyLatentVideo"), mcm.node("MCM_EmptyLatentVideo")];
    const texts = mcm.all().filter(each => each.type === "CLIPTextEncode");
    const decode = mcm.node("VAEDecode");
    const advanced = mcm.add("SamplerCustomAdvanced");
    const [noise, guider] = [mcm.add("RandomNoise"), mcm.add("CFGGuider")];
    const [select, scheduler] = [mcm.add("KSamplerSelect"), mcm.add("BasicScheduler")];
    mcm.link(model, "MODEL", guider, "model");
    mcm.link(texts[0], "CONDITIONING", guider, "positive");
    mcm.link(texts[1], "CONDITIONING", guider, "negative");
    mcm.link(model, "MODEL", scheduler, "model");
    mcm.link(noise, "NOISE", advanced, "noise");
    mcm.link(guider, "GUIDER", advanced, "guider");
    mcm.link(select, "SAMPLER", advanced, "sampler");
    mcm.link(scheduler, "SIGMAS", advanced, "sigmas");
    mcm.link(latent, "LATENT", advanced, "latent_image");
    mcm.link(advanced, "output", decode, "samples");
    app.graph.remove(old);
    mcm.set("CFGGuider", {cfg: 7});
    mcm.set("KSamplerSelect", {sampler_name: "euler"});
    mcm.set("BasicScheduler", {scheduler: "normal", steps: 20, denoise: 1});
}"""


def test_the_button_reaches_the_nodes_of_a_custom_sampler(page, comfy_server, sampler):
    page.evaluate(CUSTOM)
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    page.get_by_role("button", name=USE).dispatch_event("click")  # nodes lie over one another
    page.locator(NOTICE).wait_for(state="detached")
    assert values(page, "CFGGuider")["cfg"] == 1
    assert values(page, "KSamplerSelect")["sampler_name"] == "lcm"
    assert values(page, "BasicScheduler") == {"scheduler": "simple", "steps": 4, "denoise": 1}


def test_a_value_that_comes_over_a_link_is_named_instead(page, comfy_server, sampler):
    page.evaluate("""() => {
        const source = mcm.add("PrimitiveInt");
        source.widgets[0].value = 20;
        mcm.link(source, source.outputs[0].name, mcm.node("KSampler"), "steps");
    }""")
    run(page, comfy_server)
    page.locator(NOTICE).wait_for()
    page.get_by_role("button", name=USE).dispatch_event("click")
    told = "Connected to other nodes; set there: steps to 4."
    page.locator(NOTICE).get_by_text(told).wait_for()
    assert values(page, "KSampler")["cfg"] == 1


FRESH = """names => {
    app.graph.clear();
    const nodes = names.map(each => mcm.add(each));
    const latent = mcm.add("MCM_EmptyLatentVideo");
    for (const [index, node] of [...nodes.slice(1), latent].entries()) {
        const slot = node.inputs.findIndex(each => ["MODEL", "*"].includes(each.type));
        nodes[index].connect(0, node, slot);
    }
}"""
SIZED = "sides => ['width', 'height', 'frames'].every((name, i) => mcm.values(" + (
    "'MCM_EmptyLatentVideo')[name] === sides[i])"
)


@pytest.mark.parametrize(
    "names",
    [
        ["MCM_LoadVideoModel"],
        ["MCM_LoadVideoModel", "Reroute", "MCM_ContextWindows", "MCM_ModelSampling"],
        ["MCM_LoadVideoModel", "LoraLoaderModelOnly", "FreeU"],
    ],
    ids=lambda names: names[-1],
)
def test_a_new_empty_latent_offers_the_size_of_the_model(page, names):
    page.evaluate(FRESH, names)
    page.evaluate("() => mcm.set('MCM_LoadVideoModel', {model_name: 'mini'})")
    page.wait_for_function(SIZED, arg=[64, 64, 8])
    page.evaluate("() => mcm.set('MCM_LoadVideoModel', {model_name: 'text-to-video-ms-1.7b'})")
    page.wait_for_function(SIZED, arg=[32, 32, 8])


def test_the_size_of_a_lora_wins_and_typed_values_stay(page):
    page.evaluate(FRESH, ["MCM_LoadVideoModel", "MCM_LoadLora"])
    page.evaluate("() => mcm.set('MCM_LoadVideoModel', {model_name: 'text-to-video-ms-1.7b'})")
    page.evaluate("() => mcm.set('MCM_LoadLora', {lora_name: 'trained ü.safetensors'})")
    page.wait_for_function(SIZED, arg=[64, 64, 8])
    page.evaluate("() => mcm.set('MCM_EmptyLatentVideo', {width: 96})")
    page.evaluate("""() => {
        mcm.link(mcm.node("MCM_LoadVideoModel"), "MODEL", mcm.add("MCM_EmptyLatentVideo"), "model");
    }""")
    page.wait_for_function("() => mcm.wide(32) === 1")
    assert page.evaluate(SIZED, [96, 64, 8])


WAN = "wan2.1_t2v_1.3B_fp16.safetensors"


@pytest.mark.parametrize("kind", ["MCM_LoadLora", "LoraLoaderModelOnly"])
def test_a_wan_has_a_size_and_its_lora_another(page, kind):
    """Behind core's loader, with either LoRA loader and a LoRA that says nothing after it."""
    page.evaluate(FRESH, ["UNETLoader", "ModelSamplingSD3"])
    page.evaluate("name => mcm.set('UNETLoader', {unet_name: name})", WAN)
    page.wait_for_function(SIZED, arg=[480, 272, 33])
    page.wait_for_function("""() => mcm.node("MCM_EmptyLatentVideo").widgets.slice(0, 3).every(
        (widget, i) => widget.options.step2 === [16, 16, 4][i])""")
    page.evaluate(FRESH, ["UNETLoader", kind, "LoraLoaderModelOnly", "ModelSamplingSD3"])
    page.evaluate("name => mcm.set('UNETLoader', {unet_name: name})", WAN)
    page.evaluate("([kind, name]) => mcm.set(kind, {lora_name: name})", [kind, WAN_LORA])
    if kind == "MCM_LoadLora":
        silent = "modelscopet2v-laion/adapter_model.safetensors"
        page.evaluate("name => mcm.set('LoraLoaderModelOnly', {lora_name: name})", silent)
    page.wait_for_function(SIZED, arg=[64, 48, 9])
    page.evaluate("() => mcm.set('MCM_EmptyLatentVideo', {frames: 13})")
    page.evaluate("name => mcm.set('UNETLoader', {unet_name: name})", WAN)
    page.evaluate("""() => {
        mcm.link(mcm.node("UNETLoader"), "MODEL", mcm.add("MCM_EmptyLatentVideo"), "model");
    }""")
    page.wait_for_function("() => mcm.wide(480) === 1")
    assert page.evaluate(SIZED, [64, 48, 13])


def test_behind_a_loader_of_another_pack_the_lora_says_the_size(page):
    page.evaluate(FRESH, ["CheckpointLoaderSimple", "MCM_LoadLora"])
    page.evaluate("name => mcm.set('MCM_LoadLora', {lora_name: name})", WAN_LORA)
    page.wait_for_function(SIZED, arg=[64, 48, 9])


def test_the_values_of_an_opened_workflow_stay(page):
    page.evaluate(FRESH, ["MCM_LoadVideoModel"])
    page.evaluate("() => mcm.set('MCM_LoadVideoModel', {model_name: 'mini'})")
    page.wait_for_function(SIZED, arg=[64, 64, 8])
    workflow = page.evaluate("() => app.graph.serialize()")
    (node,) = [each for each in workflow["nodes"] if each["type"] == "MCM_EmptyLatentVideo"]
    node["widgets_values"][:3] = [256, 256, 16]  # a new node's own values, but they were saved
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.evaluate("""() => {
        const [loader, latent] = [mcm.node("MCM_LoadVideoModel"), mcm.node("MCM_EmptyLatentVideo")];
        latent.disconnectInput(0);
        mcm.link(loader, "MODEL", latent, "model");
        mcm.link(loader, "MODEL", mcm.add("MCM_EmptyLatentVideo"), "model");
    }""")
    page.wait_for_function("() => mcm.wide(64) === 1")
    assert page.evaluate(SIZED, [256, 256, 16])


def test_names_that_are_not_here_are_told_on_opening(page, tmp_path):
    file = EXAMPLES / "1 Text to video in 4 steps.json"
    workflow = json.loads(file.read_text(encoding="utf-8"))
    named = {"MCM_LoadVideoModel": "no/such-model", "MCM_LoadLora": "absent.safetensors"}
    for node in workflow["nodes"]:
        if node["type"] in named:
            node["widgets_values"][0] = named[node["type"]]
    file = tmp_path / "elsewhere.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    drop_file(page, file)
    page.wait_for_function("() => document.querySelectorAll('.mcm-notice').length === 2")
    texts = "\n".join(page.locator(NOTICE).all_inner_texts())
    assert "Model folder 'no/such-model' is missing." in texts
    assert "into models/diffusers and press R" in texts
    assert "LoRA 'absent.safetensors' is missing." in texts
    saved = page.evaluate("() => app.graph.serialize().nodes")
    assert {each["type"]: each["widgets_values"] for each in saved if each["type"] in named} == {
        each["type"]: each["widgets_values"] for each in workflow["nodes"] if each["type"] in named
    }
    page.evaluate("() => mcm.set('MCM_LoadVideoModel', {model_name: 'mini'})")
    page.wait_for_function("() => document.querySelectorAll('.mcm-notice').length === 1")
    drop_file(page, EXAMPLES / "1 Text to video in 4 steps.json")
    page.wait_for_function("() => document.querySelectorAll('.mcm-notice').length === 0")


PREVIEWED = """() => {
    const node = mcm.node("KSampler");
    const image = document.querySelector(`.lg-node[data-node-id="${node.id}"] img`);
    return Boolean(node.imgs?.length || image);
}"""


PREVIEW = """async () => {
    const canvas = new OffscreenCanvas(64, 64);
    canvas.getContext("2d").fillRect(0, 0, 64, 64);
    const id = String(mcm.node("KSampler").id);
    const detail = {
        blob: await canvas.convertToBlob(), nodeId: id, displayNodeId: id, parentNodeId: id,
        realNodeId: id, promptId: "p", jobId: "p",
    };
    app.api.dispatchEvent(new CustomEvent("b_preview_with_metadata", {detail}));
    app.canvas.setDirty(true, true);  // as progress does
}"""
END = """() => app.api.dispatchEvent(
    new CustomEvent("mcm.preview_end", {detail: {node: String(mcm.node("KSampler").id)}})
)"""


def test_a_preview_is_shown_until_sampling_has_ended(page, sampler):
    saved = page.evaluate("() => mcm.saved()")
    for _run in range(2):
        page.evaluate(PREVIEW)
        page.wait_for_function(PREVIEWED)
        page.evaluate(PREVIEW)
        page.evaluate(END)  # while the second image is still being decoded
        page.wait_for_function(f"() => !({PREVIEWED})()")
        page.evaluate("() => mcm.settled()")
        assert not page.evaluate(PREVIEWED)
        assert page.evaluate("() => mcm.saved()") == saved


def test_no_preview_is_left_after_a_run(page, comfy_server, sampler):
    page.evaluate("values => mcm.set('KSampler', values)", {**RIGHT, "steps": 8})
    page.evaluate("""() => {
        window.seen = 0;
        app.api.addEventListener("b_preview_with_metadata", () => { window.seen += 1; });
    }""")
    run(page, comfy_server)
    page.wait_for_function("() => window.seen > 0")
    page.wait_for_function(f"() => !({PREVIEWED})()")
    page.evaluate("() => mcm.settled()")
    assert not page.evaluate(PREVIEWED)
