"""ComfyUI's nodes of this pack; every file lists its own in ``NODES``."""

from __future__ import annotations

from importlib import import_module

from comfy_api.latest import ComfyExtension, io

from .install import explained
from .native.routes import add_routes

FILES = (
    "load_model",
    "animatediff",
    "lora",
    "sampling",
    "latents",
    "context",
    "compare",
)


class McmExtension(ComfyExtension):
    """The entry through which ComfyUI gets the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        add_routes()
        modules = [import_module(f".{name}", __name__) for name in FILES]
        return [explained(node) for module in modules for node in module.NODES]
