"""A port that cannot be used is said with the option that mends it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ui.server import OptionError, check_port, opens_browser, parser

ROOT = Path(__file__).resolve().parents[2]


def test_a_port_in_use_names_the_option(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, str(ROOT / "ui_gradio.py"), f"--server-port={port}"]
        ended = subprocess.run(
            [*command, f"--runs={tmp_path}"], cwd=ROOT, capture_output=True, text=True,
            encoding="utf-8", check=False,
        )  # fmt: skip
    assert ended.returncode == 2
    assert f"error: Port {port} is in use" in ended.stderr
    assert f"--server-port {port % 65535 + 1}" in ended.stderr


@pytest.mark.parametrize("port", [0, -1, 70000])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(OptionError, match=f"--server-port {port} is not a port"):
        check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(OptionError, match="--listen 203.0.113.7 cannot be listened on"):
        check_port("203.0.113.7", 7860)


def test_a_free_port_is_taken():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("screen", "options", "opens"),
    [(True, [], True), (False, [], False), (True, ["--no-browser"], False),
     (True, ["--listen", "0.0.0.0"], False)],
)  # fmt: skip
def test_the_page_opens_where_there_is_a_screen(monkeypatch, screen, options, opens):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0" if screen else "")
    assert opens_browser(parser().parse_args(options)) is opens
