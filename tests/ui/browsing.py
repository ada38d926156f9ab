"""What a person does on the page, as functions of a Playwright page."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import MILLISECONDS


@contextmanager
def opened(chromium: Any, url: str, width: int = 1280, height: int = 900, scheme: str = "light"):
    """A page at ``url``. Leaving it fails when anything was asked from outside or went wrong."""
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    outside: list[str] = []
    errors: list[str] = []

    def on_request(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            outside.append(request.url)

    context.on("request", on_request)
    context.on("weberror", lambda error: errors.append(str(error.error)))
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS)
    page.goto(url)
    ready(page)
    yield page
    context.close()
    assert outside == []
    assert errors == []


def ready(page: Any) -> None:
    """Wait until the form is filled and the first look at the runs was answered."""
    page.wait_for_selector("#status .top")
    page.wait_for_function("() => document.querySelector('#field-images textarea, #field-images"
                           " input').value !== ''")  # fmt: skip


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def wait_status(page: Any, *statuses: str) -> str:
    """Wait until the header shows one of ``statuses``; which it is."""
    choices = ", ".join(f'#status .top[data-status="{status}"]' for status in statuses)
    page.wait_for_selector(choices)
    return page.locator("#status .top").get_attribute("data-status")


def load_settings(page: Any, file: Path) -> None:
    """The settings file ``file`` into the form."""
    tab(page, "Train")
    page.get_by_role("button", name="Save, load and share settings").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#load-config").click()
    chooser.value.set_files(str(file))
    page.get_by_text("Settings loaded").wait_for()


def start(page: Any, name: str) -> None:
    """Give the run a name and press Start."""
    tab(page, "Train")
    page.locator("#run-name input, #run-name textarea").fill(name)
    page.locator("#start").click()
    page.wait_for_function(
        "name => document.querySelector('#status')?.innerText.includes(name)", arg=name
    )


def toast(page: Any, text: str) -> None:
    """Wait for a message that contains ``text`` and close it."""
    message = page.locator(".toast-body", has_text=text).first
    message.wait_for()
    message.get_by_role("button").first.click()
