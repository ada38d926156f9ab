"""The browser of the tests: Playwright's Python package drives the Chromium of the system."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
LINE = (
    "No Chromium: tests in a browser were NOT run. Install it (Debian, Ubuntu: sudo apt-get "
    "install chromium), or name any Chrome or Edge: MCM_TEST_CHROMIUM=/path/to/chrome"
)


def find_chromium() -> str | None:
    """The browser to drive: ``MCM_TEST_CHROMIUM``, else the first that is installed."""
    given = os.environ.get("MCM_TEST_CHROMIUM")
    if given:
        assert Path(given).is_file(), f"MCM_TEST_CHROMIUM={given} is no file."
        return given
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser(arguments: Sequence[str] = ()) -> Iterator[Any]:
    """A headless Chromium; skips the test with the line to run where there is none, and fails in
    CI, where that would hide what was not tested.
    """
    path = find_chromium()
    if path is None:
        assert not os.environ.get("MCM_TEST_ALL"), LINE
        pytest.skip(LINE)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", *arguments]
        )
        try:
            yield started
        finally:
            started.close()
