"""The lists of requirements say what the code uses, and the code uses what they list."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USERS = {
    "torch": ("trainer", "nodes"),
    "diffusers": ("trainer", "nodes"),
    "safetensors": ("trainer",),
    "einops": ("trainer", "nodes"),
    "peft": ("trainer",),
    "imageio_ffmpeg": ("trainer",),
    "gradio": ("ui",),
}


@functools.cache
def imported(folder: str) -> set[str]:
    """Top names that the code below ``folder`` imports."""
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").split(".")[0])
    return found


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(("package", "folder"), [(p, f) for p, of in USERS.items() for f in of])
def test_what_the_project_is_built_on_is_used(package, folder):
    assert package in imported(folder)


def test_every_listed_package_is_imported():
    names = {"pillow": "PIL", "opencv-python-headless": "cv2", "imageio-ffmpeg": "imageio_ffmpeg"}
    used = imported("trainer") | imported("ui") | imported("nodes")
    listed = {re.split("[>=<]", line)[0] for line in lines("requirements.txt")}
    assert [each for each in sorted(listed) if names.get(each, each) not in used] == []


def test_the_browser_tests_run_on_comfyuis_frontend_package():
    pinned = [line.split("==")[0] for line in lines("requirements-dev.txt")]
    assert "comfyui-frontend-package" in pinned
    browser = (ROOT / "tests" / "nodes" / "browser.py").read_text(encoding="utf-8")
    assert "page.goto(server.url)" in browser and "window.app" in browser


def test_pyproject_lists_what_requirements_list():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("dependencies = [")[1].split("]")[0]
    assert sorted(re.findall(r'"([^"]+)"', block)) == sorted(lines("requirements.txt"))


def test_lists_have_lower_bounds_only():
    """The Manager's installer refuses options and links; upper bounds fight with other packs."""
    for line in lines("requirements.txt") + lines("requirements-nodes.txt"):
        assert re.fullmatch(r"[A-Za-z0-9-]+>=[0-9.]+", line), line


def test_the_registrys_archive_has_all_that_runs():
    """Each line starts at the root: "docs/" would also leave out the help pages, web/docs."""
    ignored = lines(".comfyignore")
    assert all(each.startswith("/") and (ROOT / each.lstrip("/")).exists() for each in ignored)
    kept = {"nodes", "trainer", "ui", "web", "locales", "example_workflows"}
    assert not kept & {each.strip("/") for each in ignored}
