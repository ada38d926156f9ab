"""MCM few-step video for ComfyUI: motion consistency distillation students as native models.

Inside ComfyUI this folder is a package of nodes; everywhere else it only holds ``trainer``.
"""

from __future__ import annotations

import importlib.util
import logging

WEB_DIRECTORY = "./web"
NEEDED = ("diffusers", "transformers", "safetensors", "PIL", "numpy", "tqdm")
"""What the nodes import, most of it only when one runs; the trainer needs more."""


async def comfy_entrypoint():
    """ComfyUI's door to the pack (V3).

    A missing dependency costs the nodes and one line in the log, never ComfyUI's start.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        logging.getLogger(__name__).error(
            "MCM few-step video: no nodes, because these packages are missing: %s. Install them "
            "with ComfyUI's Python, in this pack's folder: python -m pip install -r "
            "requirements.txt",
            ", ".join(missing),
        )
        return _empty_extension()
    from .nodes import McmExtension

    return McmExtension()


def _empty_extension():
    from comfy_api.latest import ComfyExtension

    class NoNodes(ComfyExtension):
        """ComfyUI refuses an entry point that returns nothing."""

        async def get_node_list(self) -> list:
            return []

    return NoNodes()
