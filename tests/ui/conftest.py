"""A real server of the web trainer, and a real Chromium in front of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from chromium import browser  # noqa: E402
from webtrainer import WebTrainer  # noqa: E402


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Twelve captioned pictures of the poster style."""
    from minimaker.looks import STYLES, write_style_folder

    folder = tmp_path_factory.mktemp("originals")
    write_style_folder(folder, STYLES["poster"], 12, 64, seed=5)
    return folder


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, pictures) -> Iterator[WebTrainer]:
    """A server on a fresh folder with some pictures and the folders of a ComfyUI."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    web = WebTrainer(tmp_path_factory.mktemp("web ä"))
    shutil.copytree(pictures, web.pictures / "poster")
    (web.comfyui / "models" / "loras").mkdir(parents=True)
    web.start()
    yield web
    web.stop_everything()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started
