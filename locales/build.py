"""Write the English locale again from the nodes themselves: ``python locales/build.py``.

Needs what the tests of the nodes need. German and Chinese are written by hand: after a change of
the English text change them too; tests/nodes/test_locales.py says what is missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENGLISH = HERE / "en" / "nodeDefs.json"
TESTS = HERE.parent / "tests"
sys.path += [str(HERE.parent), str(TESTS), str(TESTS / "nodes")]


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """What the frontend calls ``nodeDefs``, of this pack's nodes in ComfyUI's /object_info."""
    return {name: _node(info) for name, info in object_info.items() if name.startswith("MCM_")}


def _node(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {
        name: {"name": name, "tooltip": spec[1]["tooltip"]}
        for group in ("required", "optional")
        for name, spec in info["input"].get(group, {}).items()
    }
    shown = zip(info["output"], info["output_name"], info["output_tooltips"], strict=True)
    outputs = {
        str(number): {**({"name": name} if name != kind else {}), "tooltip": tooltip}
        for number, (kind, name, tooltip) in enumerate(shown)
    }
    named = {"display_name": info["display_name"], "description": info["description"]}
    return {**named, "inputs": inputs, "outputs": outputs}


def as_text(definitions: dict[str, Any]) -> str:
    return json.dumps(definitions, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    from comfyui import ComfyServer, find_comfyui

    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(find_comfyui(Path(folder)), Path(folder) / "base", HERE.parent)
        try:
            ENGLISH.write_text(as_text(english(server.get("/object_info"))), encoding="utf-8")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
