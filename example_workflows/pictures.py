"""Take the pictures of the examples in ComfyUI's own frontend: ``python
example_workflows/pictures.py [NAME ...]``.

Needs what the tests of the nodes need: requirements-dev.txt, Debian's chromium, ``COMFYUI_PATH``
for another ComfyUI. Examples of the mini model are run first: the picture then shows their clip.
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests" / "nodes")]

from browser import drop_file, frontend, press_run  # noqa: E402
from comfyui import ComfyServer, error_of, find_comfyui  # noqa: E402
from PIL import Image  # noqa: E402

VIEW = (1900, 1250)
MARGIN, TITLE = 24, 30
LARGEST = 150_000
ONLY_GRAPH = """body * {visibility: hidden}
    #graph-canvas, .dom-widget, .dom-widget * {visibility: visible}"""
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


def take(page: Any, server: ComfyServer, file: Path) -> bytes:
    """JPEG of the graph in ``file``, cropped to its nodes, below `LARGEST` bytes."""
    drop_file(page, file)
    if file.stem.startswith("mini-"):
        error = error_of(press_run(page, server))
        if error:
            raise RuntimeError(f"{file.name}: {error}")
    page.wait_for_timeout(3000)
    clip = page.evaluate(FIT, [MARGIN, TITLE])
    page.mouse.move(1, 1)
    page.wait_for_timeout(2000)
    image = Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")
    for quality in (88, 80, 70, 60, 50):
        buffer = BytesIO()
        image.save(buffer, format="JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() < LARGEST:
            break
    return buffer.getvalue()


def main(names: list[str]) -> None:
    files = [HERE / f"{name}.json" for name in names] or sorted(HERE.glob("*.json"))
    with tempfile.TemporaryDirectory() as folder:
        comfyui = find_comfyui(Path(folder))
        server = ComfyServer(comfyui, Path(folder) / "base", HERE.parent)
        try:
            with frontend(server, *VIEW) as page:
                page.add_style_tag(content=ONLY_GRAPH)
                for file in files:
                    data = take(page, server, file)
                    file.with_suffix(".jpg").write_bytes(data)
                    print(f"{file.stem}.jpg, {len(data) / 1000:.0f} kB")
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
