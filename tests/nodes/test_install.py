"""What is wrong with an installation is said when ComfyUI starts."""

from __future__ import annotations

import shutil
import sys
import urllib.error
from importlib import import_module
from pathlib import Path

import pytest
from comfyui import ComfyServer, error_of
from ui_graphs import node

ROOT = Path(__file__).resolve().parents[2]
TITLE = "MCM few-step video"


@pytest.fixture
def install(comfy):
    return import_module(f"{comfy.__name__}.nodes.install")


def test_copies_and_a_folder_name_that_is_not_served_are_in_the_log(comfy_path, tmp_path):
    nodes = tmp_path / "custom_nodes"
    for name in ("a_copy", "off.disabled"):
        (nodes / name).mkdir(parents=True)
        shutil.copy(ROOT / "pyproject.toml", nodes / name)
        (nodes / name / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    server = ComfyServer(comfy_path, tmp_path, ROOT, folder="MCM Vidéo")
    try:
        log = server.log()
        own, copy = (nodes / name for name in ("MCM Vidéo", "a_copy"))
        assert f"{TITLE} is installed more than once: '{own}', '{copy}'. " in log
        assert "templates or help pages from a folder called 'MCM Vidéo'" in log
        page = "/extensions/MCM%20Vid%C3%A9o/docs/MCM_LoadLora.md"
        with pytest.raises(urllib.error.HTTPError, match="404"):  # as the log says
            server.get_bytes(page)
        info = node("MCM_LoraInfo", lora_name="mini-poster.safetensors")
        entry = server.run({"1": info, "2": node("PreviewAny", source=["1", 7])})
        assert not error_of(entry), error_of(entry)  # the nodes run all the same
    finally:
        server.stop()


def test_a_good_installation_says_nothing(comfy_server):
    log = comfy_server.log()
    assert all(word not in log for word in ("is missing", "more than once", "from a folder called"))
    assert comfy_server.get_bytes("/extensions/mcm-video/docs/MCM_LoadLora.md")


@pytest.mark.parametrize("name", ["mcm-video", "ComfyUI_MCM-main", "mcm+2"])
def test_names_that_are_served(install, name):
    assert install.PLAIN_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["mcm video", "mcm-vidéo", "MCM (1)", "mcm-0.1", "mcm@1", "视频"])
def test_names_that_are_not(install, name):
    assert not install.PLAIN_NAME.fullmatch(name)


def test_old_and_absent_packages_are_unmet(install, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# words\ntorch>=2.5\ntorch>=99.1  # far\nno-such-thing>=1\n", "utf-8")
    old, absent = install.unmet(file)
    assert old.startswith("torch 99.1 or newer (it has 2.")
    assert absent == "no-such-thing"


def test_a_package_that_does_not_import_is_explained(install):
    class Broken:
        """Stands where diffusers wraps what failed inside it."""

        @classmethod
        def execute(cls):
            try:
                import no_such_module  # noqa: F401
            except ImportError as error:
                raise RuntimeError("Failed to import diffusers.models") from error

    told = rf"{TITLE}: No module named 'no_such_module'. Run this in .*-r "
    with pytest.raises(ImportError, match=told):
        install.explained(Broken).execute()


def test_the_line_quotes_a_python_in_a_folder_with_spaces(install, monkeypatch):
    monkeypatch.setattr(sys, "executable", r"C:\Program Files\ComfyUI\python.exe")
    line = install.install_line()
    assert r'"C:\Program Files\ComfyUI\python.exe"' in line
    assert line.rstrip('"').endswith("requirements-nodes.txt")
