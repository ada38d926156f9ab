"""ComfyUI's own frontend in a headless Chromium."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chromium import browser
from comfyui import ComfyServer
from patience import MILLISECONDS

ARGUMENTS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the template browser opens over the canvas
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # text is drawn at every zoom
}
# The frontend takes its loading mask away when a fade ends; where a slow machine lets the fade out
# begin before the fade in has ended, neither ends and the mask stays over everything.
STILL = """
    const sheet = new CSSStyleSheet();
    sheet.replaceSync("*, ::before, ::after { animation: none !important; }");
    document.adoptedStyleSheets = [sheet];
"""
DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const dragged = new DataTransfer();
    dragged.items.add(new File([bytes], name));
    const canvas = document.querySelector("#graph-canvas");
    const options = {dataTransfer: dragged, bubbles: true, cancelable: true};
    for (const kind of ["dragenter", "dragover", "drop"])
        canvas.dispatchEvent(new DragEvent(kind, {...options, clientX: 600, clientY: 400}));
}"""
NODES = """() => app.graph.nodes.map(node => ({
    type: node.type,
    known: node.type in LiteGraph.registered_node_types,
    widgets: Object.fromEntries((node.widgets ?? []).map(each => [each.name, each.value])),
}))"""


@contextmanager
def frontend(
    server: ComfyServer, width: int = 1600, height: int = 900, nodes2: bool = False
) -> Iterator[Any]:
    """A Playwright page with an empty canvas of ``width`` x ``height`` pixels; ``nodes2`` draws it
    with the frontend's "Nodes 2.0".
    """
    with browser(ARGUMENTS) as chromium:
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(MILLISECONDS)
        page.add_init_script(STILL)
        open_canvas(page, server, nodes2)
        yield page


def open_canvas(page: Any, server: ComfyServer, nodes2: bool) -> None:
    """Load the frontend into ``page`` (again), with an empty canvas."""
    server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": nodes2})
    page.goto(server.url)
    page.wait_for_function("() => window.app?.graph && app.canvas?.canvas")
    page.wait_for_function("() => 'MCM_LoadLora' in LiteGraph.registered_node_types")
    page.wait_for_selector("#graph-canvas", state="visible")
    page.evaluate("() => app.graph.clear()")


def drop_file(page: Any, file: Path) -> list[dict[str, Any]]:
    """Drop ``file`` on the canvas; the nodes of the graph that opens (`NODES`)."""
    page.evaluate("() => app.graph.clear()")
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    page.evaluate(DROP, [file.name, data])
    page.wait_for_function("() => app.graph.nodes.length > 0")
    return page.evaluate(NODES)


def press_run(page: Any, server: ComfyServer) -> dict[str, Any]:
    """Queue the open graph by keyboard; its history entry when it has ended."""
    before = set(server.get("/history"))
    page.locator("#graph-canvas").focus()
    with page.expect_response("**/api/prompt") as answer:
        page.keyboard.press("Control+Enter")
    assert answer.value.ok, answer.value.text()
    prompt = answer.value.json()["prompt_id"]
    assert prompt not in before
    return server.wait(prompt)
