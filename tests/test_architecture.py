"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from trainer.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "trainer").rglob("*.py"))
PAGES = sorted((ROOT / "ui").rglob("*.py"))
PAGE_IMPORTS = {"trainer", "gradio", "starlette", "PIL", "psutil", *sys.stdlib_module_names}
FORBIDDEN = ("comfy", "folder_paths", "server", "nodes", "gradio", "execution", "ui", "minimaker")
NODES = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py"))]
ALLOWED = {
    # trainer: packages, and files beside them
    "trainer": {
        "__main__": {"cli"},
        "adversarial": {"data", "families", "mini", "models", "paths"},
        "cards": {"files"},
        "catalog": {"adversarial", "cards", "families", "lora", "models", "paths"},
        "cli": {
            "cards", "catalog", "config", "data", "distill", "evaluate", "families", "files",
            "lora", "media", "mini", "models", "paths", "readiness", "runs", "settings",
        },
        "config": {"families", "files", "paths", "settings"},
        "data": {"files", "words"},
        "diffusion": set(),
        "distill": {
            "adversarial", "cards", "config", "data", "diffusion", "evaluate", "families", "files",
            "lora", "media", "models", "motion", "runs", "settings", "sheets", "words",
        },
        "evaluate": {
            "adversarial", "data", "diffusion", "families", "files", "lora", "media", "mini",
            "models", "sheets",
        },
        "files": set(),
        "families": {"cards", "diffusion", "models", "paths", "words"},
        "lora": {"diffusion", "families", "files", "models", "words"},
        "media": {"sheets"},
        "mini": {"paths"},
        "models": {"diffusion", "files", "paths"},
        "motion": {"diffusion"},
        "paths": set(),
        "readiness": {
            "adversarial", "cards", "catalog", "config", "data", "distill", "families", "files",
            "lora", "models", "paths",
        },
        "runs": {"config", "files", "words"},
        "settings": {"cards", "paths"},
        "sheets": set(),
        "words": set(),
    },
    # nodes: what a node does is in native, and native knows no node
    "nodes": {
        **dict.fromkeys(
            ("animatediff", "compare", "context", "latents", "load_model", "lora", "sampling"),
            {"native"},
        ),
        "__init__": {"install", "native"},
        "install": set(),
        "native": set(),
    },
}  # fmt: skip
"""What each package, and each file beside them, may import besides itself. What a node does is in
`native`, and native knows no node."""
TRAINER_OF_NODES = {"diffusion", "families", "lora", "models", "paths", "sheets", "words"}
"""What the nodes may import of the trainer: nothing that trains."""
TOP_OF_PAGE = ("tabs", "app", "server")
"""What puts the page together, the last on top; all other parts know none of these."""
FAMILY_MODULES = {
    "nodes/native/animatediff.py": "the node of a motion module makes one kind of model only",
}
"""Files that may import the module of one family."""
FAMILY_WORDS = {
    "nodes/__init__.py": "the file of a node",
    "nodes/animatediff.py": "a word to find the node by",
    "nodes/load_model.py": "a word to find the node by",
}
"""Files that may hold a family's name as a text."""
FAMILY_COMPARED = {
    "trainer/lora/few_step.py": "a LoRA's family and the model's must be one, whichever it is",
}
"""Files that may compare families."""


def imports(path: Path):
    """What ``path`` imports, as dotted names from the root; absolute ones as they are."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            whole = (*base, *filter(None, [node.module]))
            # `from . import x` and `from ..package import module`
            yield from (".".join((*whole, alias.name)) for alias in node.names)


def parts(top: str) -> dict[str, set[str]]:
    """Packages and files of folder ``top``, and which other ones each imports."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / top).rglob("*.py"):
        inside = path.relative_to(ROOT / top).parts
        names = [name.split(".") for name in imports(path)]
        mine = found.setdefault(inside[0].removesuffix(".py"), set())
        mine |= {name[1] for name in names if name[0] == top and len(name) > 1}
    return {part: (others & set(found)) - {part} for part, others in found.items()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_trainer_imports_no_viewer_and_only_relatively(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] != "trainer", "use a relative import"
    for name in imports(path):
        top = name.split(".")[0]
        assert not top.startswith("comfy") and top not in FORBIDDEN, name


@pytest.mark.parametrize("top", sorted(ALLOWED))
def test_arrows_go_one_way(top):
    found = {part: others for part, others in parts(top).items() if part != "__init__" or others}
    assert found.keys() == ALLOWED[top].keys(), "a new part needs its arrows"
    assert {part: others - ALLOWED[top][part] for part, others in found.items()} == {
        part: set() for part in found
    }
    TopologicalSorter(ALLOWED[top]).prepare()  # raises CycleError


def test_the_page_is_put_together_on_top():
    found = parts("ui")
    TopologicalSorter(found).prepare()
    for part, others in found.items():
        below = TOP_OF_PAGE.index(part) if part in TOP_OF_PAGE else 0
        assert not others & set(TOP_OF_PAGE[below:]), part


def test_nodes_import_nothing_that_trains():
    for path in NODES:
        names = [name.split(".") for name in imports(path) if name.startswith("trainer.")]
        assert {name[1] for name in names} <= TRAINER_OF_NODES, path


FAMILY = re.compile(r"(?:.*[._])?(?:family|FAMILY)(?:\.(?:name|title|architecture))?")
FAMILY_NAMES = {word for family in FAMILIES for word in (family.name, family.architecture)}
ASKING = {"get", "pop", "setdefault", "index", "count", "startswith", "endswith", "isinstance",
          "eq", "is_", "__eq__", "__contains__", "__getitem__"}  # fmt: skip


def names_a_family(node: ast.AST | None) -> bool:
    """Whether an expression is a family, its name, or one chosen from the table."""
    if node is None:
        return False
    text = ast.unparse(node)
    return bool(FAMILY.fullmatch(text)) or text.startswith(("FAMILIES[", "families.FAMILIES["))


def asked(node: ast.AST) -> bool:
    """Whether ``node`` decides by which family it has."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        nothing = any(isinstance(side, ast.Constant) and side.value is None for side in sides)
        return any(map(names_a_family, sides)) and not nothing
    if isinstance(node, ast.Match):
        return names_a_family(node.subject)
    if isinstance(node, ast.Subscript):
        return names_a_family(node.slice)
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition(".")[2]
        own = isinstance(node.func, ast.Attribute) and names_a_family(node.func.value)
        return called in ASKING and (own or any(map(names_a_family, node.args)))
    return False


def family_faults(tree: ast.AST, file: str = "") -> list[str]:
    """Where a source text names a family, imports the module of one, or asks which it has."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        text = node.value if isinstance(node, ast.Constant) else None
        text = node.arg if isinstance(node, ast.keyword) else text
        if isinstance(text, str) and text.lower() in FAMILY_NAMES and file not in FAMILY_WORDS:
            found.append(f"{file}:{line} has a family's name, {text!r}")
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute):
            words = set(re.findall(r"\w+", ast.unparse(node)))
            named = words & FAMILY_NAMES and "families" in words
            if named and file not in FAMILY_MODULES:
                found.append(f"{file}:{line} knows the module of a family")
        if asked(node) and file not in FAMILY_COMPARED:
            found.append(f"{file}:{line} asks which family it has: {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize("path", [*SOURCES, *PAGES, *NODES], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_asks_which_family_it_has(path):
    """It asks the record of the family instead; the families themselves and their table do not."""
    file = path.relative_to(ROOT).as_posix()
    if not file.startswith("trainer/families/"):
        assert family_faults(ast.parse(path.read_text(encoding="utf-8")), file) == []


@pytest.mark.parametrize(
    "text",
    [
        "if family == other: pass",
        "if model.family.name != name: pass",
        "if model.family is chosen: pass",
        "if model.family is not FAMILIES[0]: pass",
        "if info.family in video: pass",
        "if name in ('modelscope', 'x'): pass",
        "if kind == 'animatediff': pass",
        "if kind == 'AnimateDiff': pass",
        "if found is FAMILY: pass",
        "if card.family.title not in titles: pass",
        "TABLE[model.family.name]",
        "TABLE.get(family)",
        "TABLE = {'modelscope': 1}",
        "TABLE = dict(modelscope=1)",
        "match model.family.name:\n    case _: pass",
        "match name:\n    case 'modelscope': pass",
        "family.name.startswith(start)",
        "isinstance(model.family, Kind)",
        "operator.eq(model.family, other)",
        "from ..families import animatediff",
        "from ..families.animatediff import FAMILY",
        "from trainer.families.modelscope import PARTS as parts",
        "import trainer.families.modelscope",
        "families.animatediff.LICENCE",
        "build('modelscope-t2v')",
    ],
)
def test_no_way_of_asking_is_overlooked(text):
    assert family_faults(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "family.graph(base)",
        "if family is None: pass",
        "if family and family.shelf.takes_motion: pass",
        "card = LoraCard(family=model.family.name)",
        "names = [family.name for family in FAMILIES]",
        "find('animatediff_models')",
    ],
)
def test_asking_the_record_is_no_fault(text):
    assert family_faults(ast.parse(text)) == []


def test_no_exception_is_left_over():
    for table in (FAMILY_MODULES, FAMILY_WORDS, FAMILY_COMPARED):
        for file in table:
            assert family_faults(ast.parse((ROOT / file).read_text(encoding="utf-8"))), file


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
