"""Core's dynamic VRAM without an NVIDIA card: its own patcher, minus the driver's memory.

ComfyUI switches it on by setting `model_patcher.CoreModelPatcher`. Its `ModelPatcherDynamic` hands
CPU devices to the plain class, leaves large layers to the card and asks `comfy_aimdo` for pinned
memory; these three are taken out, everything else is core's code. Before 0.12 there is nothing to
switch on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NoHostBuffer:
    """Pinned memory of size 0."""

    size = 0

    def __init__(self, *_sizes: int) -> None:
        pass


def has_dynamic_vram() -> bool:
    import comfy.model_patcher

    return hasattr(comfy.model_patcher, "ModelPatcherDynamic")


@contextmanager
def dynamic_vram() -> Iterator[bool]:
    """Everything that core or the pack loads inside gets a dynamic patcher; whether it does."""
    import comfy.model_patcher as core

    if not has_dynamic_vram():
        yield False
        return
    import comfy_aimdo.host_buffer

    class OnTheCpu(core.ModelPatcherDynamic):
        def __new__(cls, *_args: Any, **_options: Any):
            return object.__new__(cls)

        def _load_list(self, *args: Any, **options: Any) -> list:
            """Every layer counts as small: those are loaded at once, the others on a card only."""
            found = super()._load_list(*args, **options)
            return [(*first, 0, name, layer, own) for *first, _size, name, layer, own in found]

    kept = core.CoreModelPatcher, comfy_aimdo.host_buffer.HostBuffer
    core.CoreModelPatcher, comfy_aimdo.host_buffer.HostBuffer = OnTheCpu, NoHostBuffer
    try:
        yield True
    finally:
        core.CoreModelPatcher, comfy_aimdo.host_buffer.HostBuffer = kept
