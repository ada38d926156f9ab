"""Server route for the pack's frontend extension: the size of a model's clips."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from .notices import comfy_server

VIDEO_SIZE = "/mcm/video_size"
NAMES = ("model_name", "motion_module", "lora_name")
SIDES = ("width", "height", "frames")


def add_routes() -> None:
    """Answer ``GET /mcm/video_size?model_name=...`` (or ``motion_module``, and ``lora_name``).

    Only once: ComfyUI refuses a route twice, so a second copy of the pack would prevent it from
    starting.
    """
    from aiohttp import web

    server = comfy_server()
    if server is None or VIDEO_SIZE in {getattr(route, "path", "") for route in server.routes}:
        return

    @server.routes.get(VIDEO_SIZE)
    async def answer(request: web.Request) -> web.Response:
        names = {name: request.query.get(name, "") for name in NAMES}
        try:
            return web.json_response(await asyncio.to_thread(video_size, **names))
        except (ValueError, OSError, KeyError):  # do not reveal anything about files or folders
            return web.json_response({"error": "unknown or unreadable name"}, status=404)


def video_size(
    model_name: str = "", motion_module: str = "", lora_name: str = ""
) -> dict[str, int]:
    """``width`` and ``height`` in pixels and ``frames`` to offer for a model of `Load Video Model`
    or a motion module, and what a LoRA's metadata says instead.

    Names as in the nodes' lists. Reads small JSON files and the LoRA's header, no weights. Raises
    ValueError for names that are not in the model folders.
    """
    from .animatediff import SIZE
    from .motion_files import resolve_motion_module

    size: dict[str, int] = {}
    if model_name:
        size = _folder_size(model_name)
    elif motion_module:
        resolve_motion_module(motion_module)
        size = dict(zip(SIDES, SIZE, strict=True))
    if lora_name:
        size |= _lora_size(lora_name)
    if set(size) != set(SIDES):
        raise ValueError("Neither the model nor the LoRA says what it was made for.")
    return size


def _folder_size(name: str) -> dict[str, int]:
    from .catalog import resolve_model_name
    from .model import read_info

    folder = resolve_model_name(name)
    config, scheduler = (
        json.loads((folder / part).read_text(encoding="utf-8"))
        for part in ("unet/config.json", "scheduler/scheduler_config.json")
    )
    info = read_info(folder, config, scheduler)
    return {"width": info.width, "height": info.height, "frames": info.default_frames}


def _lora_size(name: str) -> dict[str, int]:
    from ...trainer.lora.files import read_metadata
    from ...trainer.lora.formats import locate
    from .lora import resolve_lora

    return _sizes_in(read_metadata(locate(resolve_lora(name))))


def _sizes_in(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that LoRA ``metadata`` states; those that are no positive number are left out."""
    told = {side: str(metadata.get(f"mcm.{side}", "")) for side in SIDES}
    return {side: int(text) for side, text in told.items() if text.isdecimal() and int(text) > 0}
