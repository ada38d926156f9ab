"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "trainer").rglob("*.py"))
FORBIDDEN = ("comfy", "folder_paths", "server", "nodes", "gradio", "execution")
ALLOWED = {
    "diffusion": {"diffusion"},
    "motion": {"motion"},
    "models": {"models", "paths"},
    "families": {"families", "models", "diffusion", "paths", "words"},
    "settings": {"settings"},
    "runs": {"runs", "config", "settings"},
}


def imports(tree: ast.AST, package: tuple[str, ...]):
    """Top names of absolute imports, and first parts below ``trainer`` of relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (("absolute", alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield "absolute", (node.module or "").split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or "").split("."))
            yield "relative", target[1] if len(target) > 1 and target[1] else "root"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_trainer_imports_no_viewer_and_only_relatively(path):
    package = path.relative_to(ROOT).parent.parts
    for kind, name in imports(ast.parse(path.read_text(encoding="utf-8")), package):
        if kind == "absolute":
            assert not name.startswith("comfy") and name not in (*FORBIDDEN, "trainer"), name


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_arrows_go_one_way(part):
    for path in (ROOT / "trainer" / part).rglob("*.py"):
        package = path.relative_to(ROOT).parent.parts
        for kind, name in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            if kind == "relative":
                assert name in ALLOWED[part], f"{path}: {name}"


def test_no_code_asks_which_family_it_has():
    pattern = re.compile(r"family(\.name)? ==")
    assert [str(p) for p in SOURCES if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_no_weights_are_unpickled():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{path}:{node.lineno}"
