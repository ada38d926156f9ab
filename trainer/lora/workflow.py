"""Graphs of few-step video for ComfyUI: in a LoRA's metadata, and as the examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .graph import KINDS, Node, build_graph
from .metadata import LoraCard
from .needs import FOLDERS, LORAS, needed_files, needed_folder, note_text

if TYPE_CHECKING:
    from ..families.record import Graph, Half, Loader, OtherNetwork

Source = tuple[Node, str]
"""A node and the name of one of its outputs."""


def sources_of(*loaders: Node) -> dict[str, Source]:
    """Which of ``loaders`` gives MODEL, CLIP and VAE; the last of several counts."""
    return {name: (node, name) for node in loaders for name, _ in KINDS[node.type].outputs}


def after(kind: str, widgets: Mapping[str, Any], model: Source, **options: Any) -> Node:
    """A node that takes MODEL ``model`` and gives one."""
    return Node(kind, dict(widgets), {"model": model}, **options)


def named(kind: str, *values: Any) -> dict[str, Any]:
    """``values`` by the widgets of a node's ``kind``, in their order."""
    return dict(zip(KINDS[kind].widgets, values, strict=True))


def empty_clip(
    model: Source, size: tuple[int, int, int], kind: str = "MCM_EmptyLatentVideo", videos: int = 1
) -> Node:
    """Empty latents of ``size`` (width and height in pixels, frames)."""
    links = {"model": model} if ("model", "MODEL") in KINDS[kind].inputs else {}
    return Node(kind, named(kind, *size, videos), links)


def sample_nodes(
    sources: Mapping[str, Source],
    model: Source,
    prompt: str,
    *,
    size: tuple[int, int, int],
    fps: float,
    steps: int,
    seed: int = 0,
    prefix: str = "video/mcm",
    latents: str = "MCM_EmptyLatentVideo",
) -> list[Node]:
    """Prompt, empty latents, KSampler in few steps, decoder and video file.

    ``sources`` give CLIP and VAE, ``model`` is the MODEL to sample with, ``size`` (width and height
    in pixels, frames), ``latents`` the kind of node that begins a clip.
    """
    clip = {"clip": sources["CLIP"]}
    positive = Node("CLIPTextEncode", {"text": prompt}, clip, "Prompt")
    negative = Node("CLIPTextEncode", {"text": ""}, clip, "Negative (unused at CFG 1)")
    empty = empty_clip(model, size, latents)
    passed_on = (empty, "MODEL") if empty.links else model
    sampler = few_step_sampler(passed_on, positive, negative, (empty, "LATENT"), steps, seed)
    decoded = decode((sampler, "LATENT"), sources)
    saved = save_nodes((decoded, "IMAGE"), fps, prefix)
    return [empty, positive, negative, sampler, decoded, *saved]


def decode(latents: Source, sources: Mapping[str, Source]) -> Node:
    """Latents to images with the VAE of ``sources``."""
    return Node("VAEDecode", {}, {"samples": latents, "vae": sources["VAE"]})


def few_step_sampler(
    model: Source,
    positive: Node,
    negative: Node,
    latents: Source,
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


def save_nodes(images: Source, fps: float, prefix: str) -> list[Node]:
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
    graph = _graph_of(card)
    if graph is None:
        return ""
    loaders = _loaded(graph)
    needed = [dict(entry) for node in loaders for entry in node.models]
    if graph.other is not None:
        needed[1:1] = _models(graph.other.loader)
    told = note(note_text(card, file_name, needed, graph.note))
    nodes = _with_lora(graph, loaders, card, file_name, prompt)
    return json.dumps(build_graph([told, *nodes], file_name), ensure_ascii=False)


def lora_nodes(card: LoraCard, file_name: str, prompt: str, seed: int = 0) -> list[Node]:
    """The nodes of `lora_workflow` without its note; of a family that has nodes."""
    graph = _graph_of(card)
    assert graph is not None
    return _with_lora(graph, _loaded(graph), card, file_name, prompt, seed)


def _with_lora(
    graph: Graph, loaders: list[Node], card: LoraCard, file_name: str, prompt: str, seed: int = 0
) -> list[Node]:
    """``loaders``, and what applies the LoRA and samples with it."""
    sources = sources_of(*loaders)
    values = named(graph.lora, file_name, card.strength)
    files = needed_files(file_name, LORAS)
    styled = [after(graph.lora, values, sources["MODEL"], models=files)]
    for each in graph.sampling:
        styled.append(after(each.node, each.widgets, (styled[-1], "MODEL")))
    size, prefix = (card.width, card.height, card.frames), file_name.removesuffix(".safetensors")
    told: dict[str, Any] = {"fps": card.fps, "seed": seed, "prefix": f"video/{prefix}"}
    if graph.other is not None:
        halves = _halves(graph, graph.other, sources, (styled[-1], "MODEL"), prompt, size, **told)
        return [*loaders, *styled, *halves]
    sampled = sample_nodes(
        sources,
        (styled[-1], "MODEL"),
        prompt,
        size=size,
        steps=card.steps,
        latents=graph.latents,
        **told,
    )
    return [*loaders, *styled, *sampled]


def _halves(
    graph: Graph,
    other: OtherNetwork,
    sources: Mapping[str, Source],
    model: Source,
    prompt: str,
    size: tuple[int, int, int],
    *,
    fps: float,
    seed: int,
    prefix: str,
) -> list[Node]:
    """The other network, and both samplers: the first leaves its states to the second. ``model`` is
    the MODEL with the LoRA.
    """
    made = [Node(other.loader.node, dict(other.loader.widgets), {}, models=_models(other.loader))]
    for each in graph.sampling:
        made.append(after(each.node, each.widgets, (made[-1], "MODEL")))
    clip = {"clip": sources["CLIP"]}
    positive = Node("CLIPTextEncode", {"text": prompt}, clip, "Prompt")
    negative = Node("CLIPTextEncode", {"text": other.negative}, clip, "Negative")
    empty = empty_clip(model, size, graph.latents)
    parts = [(model, other.own), ((made[-1], "MODEL"), other.its)]
    latents: Source = (empty, "LATENT")
    samplers: list[Node] = []
    for first, (network, half) in zip(
        (True, False), parts[::-1] if other.first else parts, strict=True
    ):
        samplers.append(_half_sampler(network, positive, negative, latents, half, first, seed))
        latents = (samplers[-1], "LATENT")
    decoded = decode(latents, sources)
    saved = save_nodes((decoded, "IMAGE"), fps, prefix)
    return [*made, empty, positive, negative, *samplers, decoded, *saved]


def _half_sampler(
    model: Source,
    positive: Node,
    negative: Node,
    latents: Source,
    half: Half,
    first: bool,
    seed: int,
) -> Node:
    """KSampler (Advanced) for the first or the second half of the steps. New noise of the second
    half is of another seed: the states still hold that of the first.
    """
    middle = half.steps // 2
    values: dict[str, Any] = {
        "add_noise": "enable" if first else "disable",
        "noise_seed": seed + (not first),
    }
    values |= {"steps": half.steps, "cfg": half.cfg, "sampler_name": half.sampler}
    values |= {"scheduler": "simple", "start_at_step": 0 if first else middle}
    values |= {"end_at_step": middle if first else half.steps}
    values["return_with_leftover_noise"] = "enable" if first else "disable"
    links = {
        "model": model,
        "positive": (positive, "CONDITIONING"),
        "negative": (negative, "CONDITIONING"),
        "latent_image": latents,
    }
    name = f"{'First' if first else 'Second'} half: {half.steps - middle} of {half.steps} steps"
    return Node("KSamplerAdvanced", values, links, name)


def _graph_of(card: LoraCard) -> Graph | None:
    """The nodes for the base model of ``card``; None where its family has none."""
    from ..families import family_named
    from ..families.record import BaseFiles

    found = family_named(card.family).graph
    if found is None:
        return None
    beside = {**card.companions, "motion_module": card.motion_module}
    return found(BaseFiles(card.base_model, card.base_file, beside, card.shift, card.part))


def _loaded(graph: Graph) -> list[Node]:
    """The loaders of ``graph``, each that takes a MODEL fed with that of those before."""
    nodes: list[Node] = []
    for each in graph.loaders:
        takes = ("model", "MODEL") in KINDS[each.node].inputs
        links = {"model": sources_of(*nodes)["MODEL"]} if takes else {}
        nodes.append(Node(each.node, dict(each.widgets), links, models=_models(each)))
    return nodes


def _models(loader: Loader) -> list[dict[str, str]]:
    """What the frontend is told of a loader's file; nothing where that comes with the pack."""
    if not loader.directory:
        return []
    found = [] if loader.directory == FOLDERS else needed_files(loader.file, loader.directory)
    return found or needed_folder(loader.file, loader.directory)
