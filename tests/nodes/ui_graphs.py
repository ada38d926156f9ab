"""Graphs as the browser holds them, turned into what it queues; and graphs of a few nodes."""

from __future__ import annotations

from typing import Any

FRONTEND_ONLY = {"MarkdownNote", "Note"}
WIDGET_TYPES = {"COMBO", "COMFY_DYNAMICCOMBO_V3", "INT", "FLOAT", "STRING", "BOOLEAN"}


def inputs_of(info: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """``(name, type, options)`` of a node in /object_info, in the frontend's order."""
    found = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *options = info["input"][group][name]
            found.append((name, kind, options[0] if options else {}))
    return found


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in WIDGET_TYPES


def widgets_of(info: dict[str, Any]) -> list[str]:
    """Names in the order of ``widgets_values``; ``!`` where "control after generate" follows."""
    return [
        name + ("!" if options.get("control_after_generate") else "")
        for name, kind, options in inputs_of(info)
        if is_widget(kind)
    ]


def api_format(graph: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """What the frontend queues for UI-format ``graph``: API format, widgets by their order.

    Widgets that a newer core appended get their defaults.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in FRONTEND_ONLY:
            continue
        values, inputs = list(node["widgets_values"]), {}
        info = object_info[node["type"]]
        defaults = {name: options.get("default") for name, _, options in inputs_of(info)}
        for name in widgets_of(info):
            if not values:
                inputs[name] = defaults[name]
                continue
            inputs[name.rstrip("!")] = values.pop(0)
            if name.endswith("!"):
                values.pop(0)
        assert not values, f"{node['type']} has more values than widgets: {values}"
        linked = {slot["name"]: slot["link"] for slot in node["inputs"]}
        inputs |= {name: links[link] for name, link in linked.items() if link is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of an API-format graph; an input ``[id, output]`` is a link."""
    return {"class_type": kind, "inputs": inputs}


def text_to_images(
    lora: str = "", *, frames: int = 8, videos: int = 1, steps: int = 2, seed: int = 3
) -> dict[str, Any]:
    """API graph of the mini model to PNG files: loader "1", LoRA "2", sampler "6", images "8"."""
    applied = node("MCM_LoadLora", model=["1", 0], lora_name=lora, strength=1.0)
    return {
        "1": node("MCM_LoadVideoModel", model_name="mini", weight_dtype="fp32"),
        **({"2": applied} if lora else {}),
        "3": node("CLIPTextEncode", clip=["1", 1], text="a red star growing"),
        "4": node("CLIPTextEncode", clip=["1", 1], text=""),
        "5": node(
            "MCM_EmptyLatentVideo",
            width=64,
            height=64,
            frames=frames,
            videos=videos,
            model=["2" if lora else "1", 0],
        ),
        "6": node(
            "KSampler",
            model=["5", 1],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="lcm",
            scheduler="simple",
            positive=["3", 0],
            negative=["4", 0],
            latent_image=["5", 0],
            denoise=1.0,
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="clip"),
    }
