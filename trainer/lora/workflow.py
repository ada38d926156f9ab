"""ComfyUI graphs as JSON, in the frontend's own format: for a LoRA's metadata and for the examples.

A graph is written as a list of nodes with their connections; ids, links and places on the canvas
follow from it. Knows nothing of ComfyUI but this format (LiteGraph, version 0.4).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .metadata import LoraCard
from .needs import FOLDERS, LORAS, needed_files, needed_folder, note_text

if TYPE_CHECKING:
    from ..families.record import Loader

PACK = "mcm-video"
PACK_VERSION = "0.1.0"
CORE = "comfy-core"
CORE_VERSION = "0.3.75"
COLUMN_GAP, ROW_GAP = 60, 70
BELOW_SOURCE = {"MCM_EmptyLatentVideo", "VAEEncode", "CreateVideo"}
"""Small nodes, placed below their source, so that a graph fits a screen."""
BESIDE_SOURCE = {"VAEDecode"}
"""Nodes placed to the right of their first source, at its height."""
PREVIEW_ROOM = {"KSampler": 360}
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
    "CheckpointLoaderSimple": Kind((), _LOADED, ("ckpt_name",), (340, 110)),
    "LoraLoaderModelOnly": Kind(
        (("model", "MODEL"),), _ONE_MODEL, ("lora_name", "strength_model"), (320, 110)
    ),
    "CLIPTextEncode": Kind(
        (("clip", "CLIP"),), (("CONDITIONING", "CONDITIONING"),), ("text",), (320, 120)
    ),
    "KSampler": Kind(
        (
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
        ),
        _LATENT,
        ("seed!", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        (300, 270),
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


def sample_nodes(
    loader: Node,
    model: tuple[Node, str],
    prompt: str,
    *,
    size: tuple[int, int, int],
    fps: float,
    steps: int,
    seed: int = 0,
    prefix: str = "video/mcm",
) -> list[Node]:
    """Prompt, empty latents, KSampler in few steps, decoder and video file.

    ``loader`` gives CLIP and VAE, ``model`` is the MODEL output to sample with, ``size`` (width and
    height in pixels, frames).
    """
    positive = Node("CLIPTextEncode", {"text": prompt}, {"clip": (loader, "CLIP")}, "Prompt")
    negative = Node(
        "CLIPTextEncode", {"text": ""}, {"clip": (loader, "CLIP")}, "Negative (unused at CFG 1)"
    )
    width, height, frames = size
    values = {"width": width, "height": height, "frames": frames, "videos": 1}
    empty = Node("MCM_EmptyLatentVideo", values, {"model": model})
    latents = (empty, "LATENT")
    sampler = few_step_sampler((empty, "MODEL"), positive, negative, latents, steps, seed)
    decoded = Node("VAEDecode", {}, {"samples": (sampler, "LATENT"), "vae": (loader, "VAE")})
    return [
        empty,
        positive,
        negative,
        sampler,
        decoded,
        *save_nodes((decoded, "IMAGE"), fps, prefix),
    ]


def few_step_sampler(
    model: tuple[Node, str],
    positive: Node,
    negative: Node,
    latents: tuple[Node, str],
    steps: int,
    seed: int = 0,
    denoise: float = 1.0,
) -> Node:
    """KSampler with a student's settings: lcm, simple, CFG 1."""
    values = {"seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "lcm"}
    values |= {"scheduler": "simple", "denoise": denoise}
    links = {
        "model": model,
        "positive": (positive, "CONDITIONING"),
        "negative": (negative, "CONDITIONING"),
        "latent_image": latents,
    }
    return Node("KSampler", values, links, f"{steps} step{'s' if steps > 1 else ''}")


def save_nodes(images: tuple[Node, str], fps: float, prefix: str) -> list[Node]:
    """Frames to a video file that carries the workflow."""
    video = Node("CreateVideo", {"fps": float(fps)}, {"images": images})
    values = {"filename_prefix": prefix, "format": "auto", "codec": "auto"}
    return [video, Node("SaveVideo", values, {"video": (video, "VIDEO")})]


def note(text: str) -> Node:
    """Markdown at the top left."""
    return Node("MarkdownNote", {"text": text}, column=0, title="Read me")


def lora_workflow(card: LoraCard, file_name: str, prompt: str) -> str:
    """JSON of the graph that an exported LoRA carries in its header: drop the file on the canvas.

    ``file_name`` is its name in ``models/loras``, ``prompt`` what to show first. Empty where no
    nodes run a base model of this family.
    """
    base = _base_nodes(card)
    if not base:
        return ""
    loader = base[0]
    values = {"lora_name": file_name, "strength": card.strength}
    files = needed_files(file_name, LORAS)
    lora = Node("MCM_LoadLora", values, {"model": (base[-1], "MODEL")}, models=files)
    sampled = sample_nodes(
        loader,
        (lora, "MODEL"),
        prompt,
        size=(card.width, card.height, card.frames),
        fps=card.fps,
        steps=card.steps,
        prefix=f"video/{file_name.removesuffix('.safetensors')}",
    )
    told = note(note_text(card, file_name, [dict(m) for node in base for m in node.models]))
    return json.dumps(build_graph([told, *base, lora, *sampled], file_name), ensure_ascii=False)


def _base_nodes(card: LoraCard) -> list[Node]:
    """The family's loaders: that of CLIP and VAE first, the one that gives the video MODEL last."""
    from ..families import family_named

    found = family_named(card.family).loaders
    if found is None:
        return []
    nodes: list[Node] = []
    for each in found(card.base_model, card.base_file, card.motion_module):
        links = {"model": (nodes[-1], "MODEL")} if nodes else {}
        nodes.append(Node(each.node, dict(each.widgets), links, models=_models(each)))
    return nodes


def _models(loader: Loader) -> list[dict[str, str]]:
    """What the frontend is told of a loader's file; nothing where that comes with the pack."""
    if not loader.directory:
        return []
    found = [] if loader.directory == FOLDERS else needed_files(loader.file, loader.directory)
    return found or needed_folder(loader.file, loader.directory)
