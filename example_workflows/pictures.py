"""Make the pictures of the template browser and of the README:
``python example_workflows/pictures.py [NAME ...]``.

Needs what the tests of the nodes need: requirements-dev.txt, Debian's chromium, ``COMFYUI_PATH``
for another ComfyUI.

The browser of templates asks for ``NAME.jpg`` and nothing else. Examples of the mini model are run
and their clips shown as an animated WebP under that name: browsers go by an image's first bytes,
not by its name. The others need models that are not here: a still picture says which.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
sys.path += [str(HERE.parent), str(TESTS), str(TESTS / "nodes")]

from browser import drop_file, frontend, press_run  # noqa: E402
from comfyui import ComfyServer, error_of, find_comfyui  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from ui_graphs import api_format, node  # noqa: E402

README = HERE.parent / "docs" / "comfyui-graph.jpg"
SIDE, GAP, BAND = 480, 8, 30
LARGEST = 150_000
GROUND, WORDS, FAINT = "#202020", "#f0f0f0", "#a8a8a8"
NEEDS = {
    "2 AnimateDiff, official LoRA": (
        "AnimateDiff in 4 steps",
        "16 frames, 512 px",
        "Needs 3 downloads: a Stable Diffusion 1.5",
        "checkpoint, a motion module, an MCM LoRA",
    ),
    "3 ModelScope, official LoRA": (
        "ModelScopeT2V in 4 steps",
        "16 frames, 256 px; no commercial use",
        "Needs 2 downloads: the diffusers folder",
        "of ModelScopeT2V and an MCM LoRA",
    ),
    "7 Wan, style LoRA in 4 steps": (
        "Wan in your style in 4 steps",
        "33 frames, 480 x 272 px",
        "Needs Wan 2.1, its text encoder and VAE,",
        "and a LoRA that you trained",
    ),
    "8 Wan, teacher beside student": (
        "Wan beside your style",
        "30 steps and 4 steps, same prompt",
        "Needs Wan 2.1, its text encoder and VAE,",
        "and a LoRA that you trained",
    ),
}
VIEW = (1900, 1250)
MARGIN, TITLE = 24, 30
ONLY_GRAPH = """body * {visibility: hidden}
    #graph-canvas, .dom-widget, .dom-widget * {visibility: visible}"""
STYLE = "css => document.head.appendChild(document.createElement('style')).textContent = css"
FIT = """([margin, title]) => {
    const boxes = app.graph.nodes.map(node => [...node.pos, ...node.size]);
    const left = Math.min(...boxes.map(box => box[0])) - margin;
    const top = Math.min(...boxes.map(box => box[1])) - margin - title;
    const right = Math.max(...boxes.map(box => box[0] + box[2])) + margin;
    const bottom = Math.max(...boxes.map(box => box[1] + box[3])) + margin;
    const view = document.querySelector("#graph-canvas").getBoundingClientRect();
    const scale = Math.min(view.width / (right - left), view.height / (bottom - top), 1);
    app.canvas.deselectAll();
    app.canvas.show_info = false;
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-left, -top];
    app.canvas.setDirty(true, true);
    return {x: view.x, y: view.y, width: (right - left) * scale, height: (bottom - top) * scale};
}"""


def clips_of(server: ComfyServer, file: Path) -> list[tuple[str, list[Image.Image]]]:
    """Label and frames of every VAE Decode of the example in ``file``, run whole."""
    graph = api_format(json.loads(file.read_text(encoding="utf-8")), server.get("/object_info"))
    titles = {
        str(each["id"]): each.get("title", "")
        for each in json.loads(file.read_text(encoding="utf-8"))["nodes"]
    }
    labels = {
        value[0]: each["inputs"][name.replace("images", "label")]
        for each in graph.values()
        if each["class_type"] == "MCM_SideBySide"
        for name, value in each["inputs"].items()
        if name.startswith("images_")
    }
    decoders = [number for number, each in graph.items() if each["class_type"] == "VAEDecode"]
    for number in decoders:
        graph[f"{number}00"] = node("SaveImage", images=[number, 0], filename_prefix="picture")
    entry = server.run(graph)
    if error_of(entry):
        raise RuntimeError(f"{file.name}: {error_of(entry)}")
    found = []
    for number in decoders:
        sampler = graph[number]["inputs"]["samples"][0]
        shown = entry["outputs"][f"{number}00"]["images"]
        frames = [Image.open(server.base / "output" / each["filename"]) for each in shown]
        found.append((labels.get(number) or titles[sampler], frames))
    return found


def prompt_of(file: Path) -> str:
    nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    return next(each["widgets_values"][0] for each in nodes if each["type"] == "CLIPTextEncode")


def moving(clips: list[tuple[str, list[Image.Image]]], prompt: str, fps: int = 8) -> bytes:
    """Animated WebP of `SIDE` pixels: the clips in a grid under their labels, then the prompt."""
    columns = math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    cell = min((SIDE - GAP * (columns - 1)) // columns, (SIDE - BAND) // rows - BAND)
    size = (SIDE, rows * (cell + BAND) + BAND)
    margin = (SIDE - columns * cell - GAP * (columns - 1)) // 2
    pages = []
    for number in range(max(len(frames) for _, frames in clips)):
        page = Image.new("RGB", size, GROUND)
        for place, (label, frames) in enumerate(clips):
            row, column = divmod(place, columns)
            left, top = margin + column * (cell + GAP), row * (cell + BAND)
            frame = frames[number % len(frames)].convert("RGB")
            page.paste(frame.resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
            write(page, label, left + cell // 2, top + cell + BAND // 2, 18, WORDS)
        write(page, prompt, SIDE // 2, size[1] - BAND // 2, 18, FAINT)
        pages.append(page)
    buffer = BytesIO()
    options = {"duration": 1000 // fps, "loop": 0, "quality": 80, "method": 6}
    pages[0].save(buffer, "WEBP", save_all=True, append_images=pages[1:], **options)
    return buffer.getvalue()


def still(graph: Image.Image, lines: tuple[str, ...]) -> bytes:
    """JPEG of `SIDE` pixels: the graph, and in words what it does and what it needs."""
    page = Image.new("RGB", (SIDE, SIDE), GROUND)
    height = round(graph.height * SIDE / graph.width)
    top = (SIDE - 36 * (len(lines) + 1) - height) // 2
    page.paste(graph.resize((SIDE, height), Image.Resampling.LANCZOS), (0, top))
    for number, line in enumerate(lines):
        top = SIDE - BAND - 36 * (len(lines) - 1 - number)
        write(page, line, SIDE // 2, top, 24 if number == 0 else 20, WORDS if number < 2 else FAINT)
    return jpeg(page)


def write(page: Image.Image, text: str, x: int, y: int, size: int, colour: str) -> None:
    """``text`` with its middle at (x, y)."""
    font = ImageFont.load_default(size)
    ImageDraw.Draw(page).text((x, y), text, fill=colour, font=font, anchor="mm")


def jpeg(image: Image.Image) -> bytes:
    """As good as `LARGEST` bytes allow."""
    for quality in (88, 80, 70, 60, 50):
        buffer = BytesIO()
        image.save(buffer, format="JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() < LARGEST:
            break
    return buffer.getvalue()


def photograph(page: Any, server: ComfyServer, file: Path, run: bool) -> Image.Image:
    """The graph in ``file`` in the browser, cropped to its nodes."""
    drop_file(page, file)
    if run and error_of(press_run(page, server)):
        raise RuntimeError(f"{file.name} did not run.")
    page.wait_for_timeout(3000)
    clip = page.evaluate(FIT, [MARGIN, TITLE])
    page.mouse.move(1, 1)
    page.wait_for_timeout(2000)
    return Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")


@contextmanager
def canvas(server: ComfyServer) -> Iterator[Any]:
    with frontend(server, *VIEW) as page:
        page.evaluate(STYLE, ONLY_GRAPH)
        yield page


def main(names: list[str]) -> None:
    files = [HERE / f"{name}.json" for name in names] or sorted(HERE.glob("*.json"))
    with tempfile.TemporaryDirectory() as folder:
        comfyui = find_comfyui(Path(folder))
        server = ComfyServer(comfyui, Path(folder) / "base", HERE.parent)
        try:
            made = {}
            for file in files:
                if file.stem not in NEEDS:
                    made[file.with_suffix(".jpg")] = moving(clips_of(server, file), prompt_of(file))
            with canvas(server) as page:
                for file in files:
                    if file.stem in NEEDS:
                        graph = photograph(page, server, file, run=False)
                        made[file.with_suffix(".jpg")] = still(graph, NEEDS[file.stem])
                if HERE / "1 Text to video in 4 steps.json" in files:
                    made[README] = jpeg(photograph(page, server, files[0], run=True))
        finally:
            server.stop()
    for path, data in made.items():
        path.write_bytes(data)
        print(f"{path.name}, {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
