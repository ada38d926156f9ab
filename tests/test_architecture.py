"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "trainer").rglob("*.py"))
PAGES = sorted((ROOT / "ui").rglob("*.py"))
PAGE_IMPORTS = {"trainer", "gradio", "starlette", "PIL", "psutil", *sys.stdlib_module_names}
FORBIDDEN = ("comfy", "folder_paths", "server", "nodes", "gradio", "execution", "ui", "minimaker")
NODES = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py"))]
ALLOWED = {
    "diffusion": {"diffusion"},
    "motion": {"diffusion", "motion"},
    "models": {"models", "paths"},
    "families": {"families", "models", "diffusion", "paths", "words"},
    "settings": {"settings", "paths"},
    "runs": {"runs", "config", "files"},
    "data": {"data", "files", "words"},
    "lora": {"files", "lora", "models", "paths"},
    "adversarial": {"adversarial", "data", "families", "mini", "models", "paths"},
    "mini": {"mini", "paths"},
    "evaluate": {
        "evaluate",
        "adversarial",
        "data",
        "diffusion",
        "families",
        "files",
        "lora",
        "media",
        "mini",
        "models",
        "sheets",
    },
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


def test_one_function_knows_the_bundled_model_by_name():
    """All others ask the record of the model what it brings and what it can draw."""
    for path in [*SOURCES, *PAGES, *NODES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Constant) and node.value == "mini"
            asked = isinstance(node, ast.Compare) and "BUNDLED" in ast.unparse(node)
            assert path.name == "paths.py" or not (named or asked), f"{path}:{node.lineno}"


def test_what_makes_the_bundled_model_is_not_loaded_with_the_nodes():
    for path in NODES:
        assert "minimaker" not in path.read_text(encoding="utf-8"), path


def test_no_weights_are_unpickled():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_web_trainer_is_a_viewer_of_small_parts(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 350
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 41, f"{node.name} is too long"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else modules
            own = isinstance(node, ast.ImportFrom) and node.level > 0
            assert own or {name.split(".")[0] for name in names} <= PAGE_IMPORTS, names
            assert not any(name.startswith("trainer.distill") for name in names), (
                "it trains nothing"
            )


def test_nothing_runs_a_shell():
    for path in [*SOURCES, *PAGES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("os.system", "os.popen"), path
                assert all(keyword.arg != "shell" for keyword in node.keywords), path


def test_no_part_of_the_trainer_leads_back_to_itself():
    arrows: dict[str, set[str]] = {}
    for path in SOURCES:
        where = path.relative_to(ROOT)
        found = imports(ast.parse(path.read_text(encoding="utf-8")), where.parent.parts)
        to = arrows.setdefault(where.with_suffix("").parts[1], set())
        to.update(name for kind, name in found if kind == "relative")

    def reached(part: str) -> set[str]:
        seen: set[str] = set()
        ahead = [part]
        while ahead:
            ahead += arrows.get(ahead.pop(), set()) - seen - {part}
            seen.update(ahead)
        return seen

    for part, direct in arrows.items():
        back = [other for other in direct - {part} if part in reached(other)]
        assert not back, f"{part} imports {back}, which lead back to it"
