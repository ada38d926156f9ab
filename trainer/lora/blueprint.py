"""Subgraph blueprints as JSON: a whole graph that ComfyUI's node library offers as one node.

The frontend's own format: one node whose type is the id of a subgraph definition, which holds the
nodes inside. Shown outside are the widgets that are named here, and the outputs.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .graph import KINDS, PACK, PACK_VERSION, Node, build_graph

INPUT_NODE, OUTPUT_NODE = -10, -20  # ids that the frontend gives to a subgraph's two ends
IO_WIDTH, ROW, TITLE, MARGIN = 150, 20, 40, 60
WIDGET_HEIGHT, NODE_WIDTH = 26, 400


@dataclass(frozen=True)
class Shown:
    """A widget of ``node`` that the blueprint's node shows as ``label``; ``type`` is its input's
    type ("STRING", "INT", "FLOAT", "COMBO").
    """

    label: str
    type: str
    node: Node
    widget: str


BARE: dict[str, Any] = {
    "config": {},
    "widgets": [],
    "groups": [],
    "extra": {"workflowRendererVersion": "LG"},
}
"""Entries that every subgraph must have and that ours leave at their defaults."""
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def build_blueprint(
    name: str,
    description: str,
    nodes: Sequence[Node],
    shown: Sequence[Shown],
    outputs: Sequence[tuple[Node, str]],
    category: str = "Video generation and editing/Text to video",
) -> dict[str, Any]:
    """The file ``name``.json of ``subgraphs/``; every source must come before what it feeds."""
    graph = build_graph(nodes, name)
    ids = {id(node): number for number, node in enumerate(nodes, start=1)}
    inside = {record["id"]: record for record in graph["nodes"]}
    links = [dict(zip(LINK, link, strict=True)) for link in graph["links"]]
    left, right, top = _edges(graph["nodes"])
    entries = [
        _input(name, number, each, inside[ids[id(each.node)]], links, (left, top))
        for number, each in enumerate(shown)
    ]
    exits = [
        _output(name, number, inside[ids[id(node)]], label, links, (right, top))
        for number, (node, label) in enumerate(outputs)
    ]
    definition = {
        "id": _id(name),
        "version": 1,
        "state": _counters(len(nodes), len(links)),
        "revision": 0,
        "name": name,
        "category": category,
        "description": description,
        "inputNode": _end(INPUT_NODE, left, top, len(entries)),
        "outputNode": _end(OUTPUT_NODE, right, top, len(exits)),
        "inputs": entries,
        "outputs": exits,
        "nodes": graph["nodes"],
        "links": links,
        **BARE,
    }
    return _file(_outer(name, len(nodes) + 1, shown, exits, ids), definition)


def _counters(nodes: int, links: int) -> dict[str, int]:
    return {"lastGroupId": 0, "lastNodeId": nodes, "lastLinkId": links, "lastRerouteId": 0}


def _file(outer: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """A workflow of one node, ``outer``, which is the subgraph."""
    return {
        "revision": 0,
        "last_node_id": outer["id"],
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


def _id(*parts: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(map(str, (PACK, "subgraphs", *parts)))))


def _edges(records: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Where the two ends stand beside the nodes: left, right and top, in pixels."""
    left = min(record["pos"][0] for record in records) - IO_WIDTH - MARGIN
    right = max(record["pos"][0] + record["size"][0] for record in records) + MARGIN
    return left, right, min(record["pos"][1] for record in records)


def _end(number: int, x: float, y: float, rows: int) -> dict[str, Any]:
    return {"id": number, "bounding": [x, y, IO_WIDTH, TITLE + ROW * rows]}


def _link(links: list[dict[str, Any]], origin: tuple[int, int], target: tuple[int, int], kind: str):
    links.append(
        {
            "id": len(links) + 1,
            "origin_id": origin[0],
            "origin_slot": origin[1],
            "target_id": target[0],
            "target_slot": target[1],
            "type": kind,
        }
    )
    return len(links)


def _input(
    name: str,
    number: int,
    shown: Shown,
    record: dict[str, Any],
    links: list[dict[str, Any]],
    place: tuple[float, float],
) -> dict[str, Any]:
    """The entry ``number``, linked to the widget, which becomes an input of its node."""
    known = {each.rstrip("!") for each in KINDS[record["type"]].widgets}
    if shown.widget not in known:
        raise ValueError(f"{record['type']} has no widget {shown.widget}; it has {sorted(known)}.")
    target = (record["id"], len(record["inputs"]))
    link = _link(links, (INPUT_NODE, number), target, shown.type)
    widget = {"name": shown.widget}
    record["inputs"].append(
        {"name": shown.widget, "type": shown.type, "widget": widget, "link": link}
    )
    return {
        "id": _id(name, "input", shown.label),
        "name": shown.widget,
        "label": shown.label,
        "type": shown.type,
        "linkIds": [link],
        "pos": [place[0] + IO_WIDTH - ROW, place[1] + ROW * (number + 1)],
    }


def _output(
    name: str,
    number: int,
    record: dict[str, Any],
    label: str,
    links: list[dict[str, Any]],
    place: tuple[float, float],
) -> dict[str, Any]:
    slot = [each["name"] for each in record["outputs"]].index(label)
    kind = record["outputs"][slot]["type"]
    link = _link(links, (record["id"], slot), (OUTPUT_NODE, number), kind)
    record["outputs"][slot]["links"].append(link)
    return {
        "id": _id(name, "output", label),
        "name": label,
        "type": kind,
        "linkIds": [link],
        "pos": [place[0] + ROW, place[1] + ROW * (number + 1)],
    }


def _outer(
    name: str,
    number: int,
    shown: Sequence[Shown],
    exits: Sequence[dict[str, Any]],
    ids: dict[int, int],
) -> dict[str, Any]:
    """The node that people see."""
    inputs = [
        {"label": each.label, "name": each.widget, "type": each.type,
         "widget": {"name": each.widget}, "link": None}
        for each in shown
    ]  # fmt: skip
    proxies = [[str(ids[id(each.node)]), each.widget] for each in shown]
    return {
        "id": number,
        "type": _id(name),
        "pos": [0, 0],
        "size": [NODE_WIDTH, TITLE + WIDGET_HEIGHT * (len(shown) + 4)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": each["name"], "type": each["type"], "links": []} for each in exits],
        "properties": {"proxyWidgets": proxies, "cnr_id": PACK, "ver": PACK_VERSION},
        "widgets_values": [],
        "title": name,
    }
