"""Search words of the nodes, for ComfyUI versions that support them."""

from __future__ import annotations

from comfy_api.latest import io

VIDEO = ("video", "text to video", "t2v")
FEW_STEP = ("few step", "lcm", "consistency", "turbo", "lightning", "fast", "distill")


def found_by(*words: str) -> dict[str, list[str]]:
    """Keyword arguments for `io.Schema`; empty before ComfyUI 0.11, which has no such field.

    When no node's name matches a query, the frontend ranks whole-word matches in this list first
    and matches late in a phrase after them. Loaders start a graph, so they have "lcm"; nodes
    further along have "sampler for lcm".
    """
    if "search_aliases" not in io.Schema.__dataclass_fields__:
        return {}
    return {"search_aliases": list(words)}
