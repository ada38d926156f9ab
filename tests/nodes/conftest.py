"""ComfyUI for the tests: in this process for the parts, as a server for whole graphs."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mcm_pack"
sys.path.append(str(Path(__file__).resolve().parent))

from comfyui import ComfyServer, find_comfyui  # noqa: E402
from stock import stock  # noqa: E402


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """ComfyUI's folder. A downloaded one is kept for the next run of the tests."""
    home = os.environ.get("MCM_TEST_CACHE") or Path.home() / ".cache" / "mcm-tests"
    cache = Path(home).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    return find_comfyui(cache)


@pytest.fixture(scope="session")
def comfy(comfy_path: Path) -> ModuleType:
    """This pack as the package ``mcm_pack``, as ComfyUI imports it, with ComfyUI importable.

    ComfyUI's folder comes first on the path: it has a module ``nodes`` of its own. Its arguments
    are read from ``sys.argv`` once, when it is first imported.
    """
    sys.path.insert(0, str(comfy_path))
    kept, sys.argv = sys.argv, ["comfyui", "--cpu"]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        # As main.py does: core's `nodes` puts comfy/ first, whose utils.py would be taken for it.
        importlib.import_module("utils.extra_config")
    finally:
        sys.argv = kept
    spec = importlib.util.spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package: types.ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    return package


@pytest.fixture(scope="session")
def comfy_server(comfy_path: Path, tiny_model: Path, tmp_path_factory) -> Iterator[ComfyServer]:
    """A running ComfyUI with this pack and the models that the tests name; its folder has a space
    and an umlaut. Previews are on.
    """
    base = tmp_path_factory.mktemp("comfy") / "Kö nig"
    stock(base / "models", tiny_model)
    server = ComfyServer(comfy_path, base, ROOT, "--preview-method", "latent2rgb")
    try:
        yield server
    finally:
        server.stop()
