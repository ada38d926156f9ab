"""Server route for the pack's frontend extension: the size of a model's clips."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .notices import comfy_server

VIDEO_SIZE = "/mcm/video_size"
NAMES = ("model_name", "motion_module", "unet_name")
SIDES = ("width", "height", "frames")


def add_routes() -> None:
    """Answer ``GET /mcm/video_size?model_name=...`` (or ``motion_module`` or ``unet_name``, and
    ``lora_name``, once for each LoRA).

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
        loras = request.query.getall("lora_name", [])
        try:
            return web.json_response(await asyncio.to_thread(video_size, loras=loras, **names))
        except (ValueError, OSError, KeyError):  # do not reveal anything about files or folders
            return web.json_response({"error": "unknown or unreadable name"}, status=404)


def video_size(
    model_name: str = "", motion_module: str = "", unet_name: str = "", loras: Sequence[str] = ()
) -> dict[str, Any]:
    """``width`` and ``height`` in pixels and ``frames`` to offer for a model of `Load Video Model`,
    a motion module or a text-to-video file of core's loader, and what the metadata of ``loras``
    says instead, that of the first before the others. ``steps`` are those from one possible value
    to the next.

    Names as in the nodes' lists. Reads small JSON files and headers, no weights. Raises ValueError
    for names that are not in the model folders.
    """
    from .animatediff import SIZE
    from .motion_files import resolve_motion_module

    size: dict[str, Any] = {"steps": _steps(8, 1)}
    if model_name:
        size |= _folder_size(model_name)
    elif motion_module:
        resolve_motion_module(motion_module)
        size |= dict(zip(SIDES, SIZE, strict=True))
    elif unet_name:
        size |= _file_size(unet_name)
    for name in reversed(loras):
        size |= _lora_size(name)
    if not set(SIDES) <= set(size):
        raise ValueError("Neither the model nor the LoRA says what it was made for.")
    return size


def _steps(sides: int, frames: int) -> dict[str, int]:
    return {"width": sides, "height": sides, "frames": frames}


def _folder_size(name: str) -> dict[str, Any]:
    from .bundle import folder_info
    from .catalog import resolve_model_name

    info = folder_info(resolve_model_name(name))
    steps = _steps(info.sides, info.stride or 1)
    return {
        "width": info.width, "height": info.height, "frames": info.default_frames, "steps": steps,
    }  # fmt: skip


def _file_size(name: str) -> dict[str, Any]:
    import folder_paths

    from .core_models import SIDES as MULTIPLE
    from .core_models import STRIDE, size_of_file

    path = folder_paths.get_full_path("diffusion_models", name)
    if path is None:
        raise ValueError(f"`unet_name`={name!r} was not found.")
    size = dict(zip(SIDES, size_of_file(Path(path)), strict=True))
    return {**size, "steps": _steps(MULTIPLE, STRIDE)}


def _lora_size(name: str) -> dict[str, Any]:
    """Nothing for a file that cannot be read here, such as a style LoRA in a pickle."""
    from ...trainer.lora.files import read_metadata
    from ...trainer.lora.formats import locate
    from .lora import resolve_lora

    try:
        return _sizes_in(read_metadata(locate(resolve_lora(name))))
    except (ValueError, OSError):
        return {}


def _sizes_in(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that LoRA ``metadata`` states; those that are no positive number are left out. One
    with a shift is for a flow, whose clips have other steps.
    """
    from .core_models import SIDES as MULTIPLE
    from .core_models import STRIDE

    told = {side: str(metadata.get(f"mcm.{side}", "")) for side in SIDES}
    sizes = {side: int(text) for side, text in told.items() if text.isdecimal() and int(text) > 0}
    return {**sizes, **({"steps": _steps(MULTIPLE, STRIDE)} if metadata.get("mcm.shift") else {})}
