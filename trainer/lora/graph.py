"""ComfyUI graphs as JSON, in the frontend's own format.

A graph is written as a list of nodes with their connections; ids, links and places on the canvas
follow from it. Knows nothing of ComfyUI but this format (LiteGraph, version 0.4).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PACK = "mcm-video"
PACK_VERSION = "0.1.0"
CORE = "comfy-core"
CORE_VERSION = "0.3.75"
COLUMN_GAP, ROW_GAP = 60, 70
BELOW_SOURCE = {"MCM_EmptyLatentVideo", "ModelSamplingSD3", "VAEEncode", "CreateVideo"}
"""Small nodes, placed below their source, so that a graph fits a screen."""
BESIDE_SOURCE = {"VAEDecode"}
"""Nodes placed to the right of their first source, at its height."""
PREVIEW_ROOM = {"KSampler": 360, "KSamplerAdvanced": 360}
"""Free pixels below a node that grows when it shows a preview."""


@dataclass(frozen=True)
class Kind:
    """Sockets of a node type: ``inputs`` and ``outputs`` as (name, type), widgets by name.

    A widget's name with ``!`` has the frontend's "control after generate" behind it.
    """

    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    widgets: tuple[str, ...] = ()
    size: tuple[int, int] = (300, 120)


_ONE_MODEL = (("MODEL", "MODEL"),)
_LOADED = (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"))
_IMAGE = (("IMAGE", "IMAGE"),)
_LATENT = (("LATENT", "LATENT"),)
_COLUMNS = tuple((f"images_{n}", "IMAGE") for n in range(1, 6))
_SAMPLED = (
    ("model", "MODEL"),
    ("positive", "CONDITIONING"),
    ("negative", "CONDITIONING"),
    ("latent_image", "LATENT"),
)
KINDS: dict[str, Kind] = {
    "MCM_LoadVideoModel": Kind((), _LOADED, ("model_name", "weight_dtype"), (300, 130)),
    "MCM_AnimateDiff": Kind((("model", "MODEL"),), _ONE_MODEL, ("motion_module",), (340, 90)),
    "MCM_LoadLora": Kind((("model", "MODEL"),), _ONE_MODEL, ("lora_name", "strength"), (320, 110)),
    "MCM_ContextWindows": Kind(
        (("model", "MODEL"),),
        _ONE_MODEL,
        ("context_length", "context_overlap", "context_schedule", "closed_loop", "fuse_method"),
        (300, 190),
    ),
    "MCM_EmptyLatentVideo": Kind(
        (("model", "MODEL"),),
        (("LATENT", "LATENT"), ("MODEL", "MODEL")),
        ("width", "height", "frames", "videos"),
        (300, 180),
    ),
    "MCM_SideBySide": Kind(_COLUMNS, _IMAGE, tuple(f"label_{n}" for n in range(1, 6)), (300, 390)),
    "UNETLoader": Kind((), _ONE_MODEL, ("unet_name", "weight_dtype"), (340, 110)),
    "CLIPLoader": Kind((), (("CLIP", "CLIP"),), ("clip_name", "type", "device"), (340, 130)),
    "VAELoader": Kind((), (("VAE", "VAE"),), ("vae_name",), (340, 80)),
    "ModelSamplingSD3": Kind((("model", "MODEL"),), _ONE_MODEL, ("shift",), (320, 80)),
    "EmptyHunyuanLatentVideo": Kind(
        (), _LATENT, ("width", "height", "length", "batch_size"), (320, 180)
    ),
    "CheckpointLoaderSimple": Kind((), _LOADED, ("ckpt_name",), (340, 110)),
    "LoraLoaderModelOnly": Kind(
        (("model", "MODEL"),), _ONE_MODEL, ("lora_name", "strength_model"), (320, 110)
    ),
    "CLIPTextEncode": Kind(
        (("clip", "CLIP"),), (("CONDITIONING", "CONDITIONING"),), ("text",), (320, 120)
    ),
    "KSampler": Kind(
        _SAMPLED,
        _LATENT,
        ("seed!", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        (300, 270),
    ),
    "KSamplerAdvanced": Kind(
        _SAMPLED,
        _LATENT,
        (
            "add_noise",
            "noise_seed!",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "start_at_step",
            "end_at_step",
            "return_with_leftover_noise",
        ),
        (300, 330),
    ),
    "VAEDecode": Kind((("samples", "LATENT"), ("vae", "VAE")), _IMAGE, (), (200, 60)),
    "VAEEncode": Kind((("pixels", "IMAGE"), ("vae", "VAE")), _LATENT, (), (200, 60)),
    "CreateVideo": Kind(
        (("images", "IMAGE"), ("audio", "AUDIO")), (("VIDEO", "VIDEO"),), ("fps",), (260, 90)
    ),
    "SaveVideo": Kind(
        (("video", "VIDEO"),), (), ("filename_prefix", "format", "codec"), (380, 420)
    ),
    "MarkdownNote": Kind((), (), ("text",), (360, 200)),
}


@dataclass
class Node:
    """One node: ``links`` name an input's source as ``(node, output name)``, ``values`` its
    widgets.

    ``models`` tells the frontend where to get a missing file (``properties.models``).
    """

    type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[Node, str]] = field(default_factory=dict)
    title: str = ""
    models: Sequence[Mapping[str, str]] = ()
    column: int | None = None

    def __post_init__(self) -> None:
        kind = KINDS[self.type]
        wrong = set(self.links) - {name for name, _ in kind.inputs}
        wrong |= set(self.values) ^ {name.rstrip("!") for name in kind.widgets}
        if wrong:
            raise ValueError(f"{self.type}: {', '.join(sorted(wrong))} missing or not known here.")


def build_graph(nodes: Sequence[Node], name: str = PACK) -> dict[str, Any]:
    """The UI-format graph of ``nodes``; every source must come before the nodes it feeds."""
    ids = {id(node): number for number, node in enumerate(nodes, start=1)}
    records = [_record(node, ids[id(node)], order) for order, node in enumerate(nodes)]
    links: list[list[Any]] = []
    for node, record in zip(nodes, records, strict=True):
        for slot, (label, kind) in enumerate(KINDS[node.type].inputs):
            if label not in node.links:
                continue
            source, output = node.links[label]
            outputs = [output_name for output_name, _ in KINDS[source.type].outputs]
            start, number = outputs.index(output), len(links) + 1
            links.append([number, ids[id(source)], start, ids[id(node)], slot, kind])
            record["inputs"][slot]["link"] = number
            records[ids[id(source)] - 1]["outputs"][start]["links"].append(number)
    _place(nodes, records)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": records,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _record(node: Node, number: int, order: int) -> dict[str, Any]:
    kind = KINDS[node.type]
    ours = node.type.startswith("MCM_")
    properties: dict[str, Any] = {
        "Node name for S&R": node.type,
        "cnr_id": PACK if ours else CORE,
        "ver": PACK_VERSION if ours else CORE_VERSION,
    }
    if node.models:
        properties["models"] = [dict(model) for model in node.models]
    inputs: list[dict[str, Any]] = [
        {"name": name, "type": kind_name, "link": None} for name, kind_name in kind.inputs
    ]
    record: dict[str, Any] = {
        "id": number,
        "type": node.type,
        "pos": [0, 0],
        "size": list(kind.size),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": [
            {"name": name, "type": kind_name, "links": []} for name, kind_name in kind.outputs
        ],
        "properties": properties,
        "widgets_values": _widget_values(node),
    }
    return record | ({"title": node.title} if node.title else {})


def _widget_values(node: Node) -> list[Any]:
    values: list[Any] = []
    for name in KINDS[node.type].widgets:
        values.append(node.values[name.rstrip("!")])
        if name.endswith("!"):
            values.append("fixed")
    return values


def _place(nodes: Sequence[Node], records: Sequence[dict[str, Any]]) -> None:
    """Columns from left to right by the longest way to a node, each filled from the top."""
    depth: dict[int, int] = {}
    tops: dict[int, int] = {}
    for node in nodes:
        step = 0 if node.type in BELOW_SOURCE else 1
        sources = [depth[id(source)] + step for source, _ in node.links.values()]
        depth[id(node)] = max(sources, default=0) if node.column is None else node.column
    left = 0
    for column in sorted(set(depth.values())):
        top, widest = 0, 0
        for node, record in zip(nodes, records, strict=True):
            if depth[id(node)] != column:
                continue
            if node.type in BESIDE_SOURCE:
                top = max(top, tops[id(next(iter(node.links.values()))[0])])
            width, height = KINDS[node.type].size
            record["pos"], tops[id(node)] = [left, top], top
            top += height + PREVIEW_ROOM.get(node.type, 0) + ROW_GAP
            widest = max(widest, width)
        left += widest + COLUMN_GAP
