"""Words by which people look for a node, where this ComfyUI has a place for them."""

from __future__ import annotations

from comfy_api.latest import io

VIDEO = ("video", "text to video", "t2v")
FEW_STEP = ("few step", "lcm", "consistency", "turbo", "lightning", "fast", "distill")


def found_by(*words: str) -> dict[str, list[str]]:
    """Keyword arguments for `io.Schema`; none before ComfyUI 0.11, which has no such field.

    Where a query is in no node's name, the frontend puts those first that have it as a whole word
    of this list, and after them those that have it late in a phrase. Loaders begin a graph: they
    have "lcm", the nodes behind them "sampler for lcm".
    """
    if "search_aliases" not in io.Schema.__dataclass_fields__:
        return {}
    return {"search_aliases": list(words)}
