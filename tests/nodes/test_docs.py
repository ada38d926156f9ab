"""Every node explains itself: in its help page, on every input, and in the menu."""

from __future__ import annotations

import asyncio
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"


@pytest.fixture(scope="module")
def schemas(comfy):
    """Schemas by node id."""
    extension = import_module(f"{comfy.__name__}.nodes").McmExtension()
    nodes = asyncio.run(extension.get_node_list())
    found = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in nodes}
    assert len(found) == len(nodes)
    return found


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def named(page: str, title: str) -> set[str]:
    """What a section's list names before the type, ranges such as `a_1` ... `a_5` spread."""
    found: set[str] = set()
    for row in section(page, title).splitlines():
        cell = row.split(" (")[0] if row.startswith("* `") else ""
        names = re.findall(r"`(\w+)`", cell)
        if "..." in cell:
            stem, last = names[0].rstrip("0123456789"), int(names[-1].rsplit("_", 1)[1])
            names = [f"{stem}{number}" for number in range(1, last + 1)]
        found |= set(names)
    return found


def test_every_node_has_a_page_and_every_page_a_node(schemas):
    assert {page.stem for page in PAGES.glob("*.md")} == set(schemas)


def test_pages_have_no_tables(schemas):
    """The help panel is 280 pixels wide: a table's third column would lie outside."""
    for page in PAGES.glob("*.md"):
        assert "\n|" not in page.read_text(encoding="utf-8"), page.name


def test_pages_name_the_inputs_and_outputs_of_their_node(schemas):
    for name, schema in schemas.items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n"), name
        assert "**When to use it:**" in page, name
        assert section(page, "Typical wiring").strip(), name
        assert section(page, "Common mistakes").strip(), name
        assert named(page, "Inputs") == {each.id for each in schema.inputs}, name
        outputs = {each.display_name or each.io_type for each in schema.outputs}
        assert named(page, "Outputs") == outputs, name


def test_every_input_has_a_tooltip(schemas):
    for name, schema in schemas.items():
        assert schema.description, name
        for each in [*schema.inputs, *schema.outputs]:
            assert each.tooltip, f"{name}.{each.id}"


def test_nodes_are_found_in_the_menu_under_one_name(schemas):
    for name, schema in schemas.items():
        assert re.fullmatch(r"MCM_[A-Za-z]+", name)
        assert schema.category.startswith("MCM/"), name
        assert schema.display_name, name


def test_outputs_of_one_type_can_be_told_apart(schemas):
    for name, schema in schemas.items():
        labels = [each.display_name or each.io_type for each in schema.outputs]
        assert len(labels) == len(set(labels)), f"{name}: {labels}"


def test_the_page_of_empty_latent_video_tells_of_frames_that_disagree(schemas):
    page = (PAGES / "MCM_EmptyLatentVideo.md").read_text(encoding="utf-8")
    assert "disagree on the frames" in page
