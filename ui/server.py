"""How the page is served: options, the guard in front of every request, launch."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from trainer.catalog import comfyui_folder

from .places import Places, default_roots
from .uploads import MAX_TOTAL_BYTES, SPARE_BYTES

PACK = Path(__file__).resolve().parents[1]
LOCAL = ("127.0.0.1", "localhost", "::1")
MAX_FILE = "1gb"
REFUSED = re.compile(
    r"/(gradio_api/)?(proxy=|file=https?:|file/|stream/|component_server|vibe|undo-vibe|deep_link"
    r"|run-history|runs|process_recording|monitoring|profiling|openapi|info|call|api/|dev/"
    r"|custom_component|svelte)"
)
"""Gradio endpoints that this page does not use."""
SERVED = {".mp4", ".webp", ".png", ".jpg", ".jpeg", ".gif", ".safetensors", ".json", ".toml"}
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' "
    "blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class OptionError(ValueError):
    """Options that contradict each other."""


def parser() -> argparse.ArgumentParser:
    """The options of ``ui_gradio.py``."""
    made = argparse.ArgumentParser(
        prog="python ui_gradio.py",
        description="The web trainer: style LoRAs for few-step video, in the browser.",
    )
    made.add_argument("--server-port", type=int, default=7860, help="port (7860)")
    made.add_argument(
        "--listen", metavar="ADDRESS", default="127.0.0.1",
        help="address to listen on (127.0.0.1: this machine only); others need --auth",
    )  # fmt: skip
    made.add_argument("--auth", metavar="NAME:PASSWORD", help="login for the page")
    made.add_argument("--runs", type=Path, default=PACK / "runs", help="folder for the runs")
    made.add_argument(
        "--root", type=Path, action="append", default=[], metavar="FOLDER",
        help="folder that images may be read from; may be repeated (your home folder)",
    )  # fmt: skip
    made.add_argument("--comfyui", type=Path, metavar="FOLDER", help="ComfyUI's folder")
    made.add_argument(
        "--models", type=Path, action="append", default=[], metavar="FOLDER",
        help="folder with base models in diffusers layout; may be repeated",
    )  # fmt: skip
    made.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    return made


def places_of(options: argparse.Namespace) -> Places:
    """The folders that ``options`` allow. Raises ValueError for a folder that is not ComfyUI's."""
    remote = options.listen not in LOCAL
    return Places(
        pack=PACK,
        runs=options.runs.expanduser().absolute(),
        roots=default_roots(PACK, options.root, remote),
        comfyui=comfyui_folder(PACK, options.comfyui),
        model_folders=tuple(folder.expanduser().absolute() for folder in options.models),
    )


def credentials(options: argparse.Namespace) -> tuple[str, str] | None:
    """Name and password; `OptionError` when the page would be open to a network without them."""
    if not options.auth:
        if options.listen not in LOCAL:
            raise OptionError(
                f"--listen {options.listen} opens the page to others: add --auth NAME:PASSWORD."
            )
        return None
    name, _, password = options.auth.partition(":")
    if not name or len(password) < 8:
        raise OptionError("--auth needs NAME:PASSWORD with at least 8 letters of password.")
    return name, password


def opens_browser(options: argparse.Namespace) -> bool:
    """Whether to open a browser: not if the page is open to others, and not without a screen."""
    screen = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return screen and not options.no_browser and options.listen in LOCAL


def _shown(options: argparse.Namespace) -> str:
    host = f"[{options.listen}]" if ":" in options.listen else options.listen
    return f"{host}:{options.server_port}"


def check_port(address: str, port: int) -> None:
    """Raise `OptionError`, naming ``--server-port``, where the page could not listen."""
    if not 1 <= port <= 65535:
        raise OptionError(f"--server-port {port} is not a port; use 1024 to 65535.")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        if os.name == "posix":  # elsewhere it would share the port of another program
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except PermissionError as error:
            raise OptionError(
                f"Port {port} needs administrator rights; use --server-port 7860 or another above "
                "1023."
            ) from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OptionError(f"--listen {address} cannot be listened on: {error}.") from error
            raise OptionError(
                f"Port {port} is in use. If it is this page, it is already open at "
                f"http://{address}:{port}; otherwise choose another port, such as --server-port "
                f"{port % 65535 + 1}."
            ) from error


class Guard:
    """ASGI middleware: right host, used doors only, uploads within limits, strict headers.

    The host is checked because a foreign page can point a name of its own at 127.0.0.1 (DNS
    rebinding) and would then count as the same origin. The origin is checked because Gradio lets
    any page ask once it is open to a network, and a browser sends the visitor's login along.
    """

    def __init__(self, app: Any, hosts: Sequence[str], uploads: Path) -> None:
        self.app, self.hosts, self.uploads = app, {host.lower() for host in hosts}, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1")
                   for key, value in scope["headers"]}  # fmt: skip
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *more]
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        if self.hosts and _host(headers.get("host", "")) not in self.hosts:
            return 403, "Unknown host."
        origin = headers.get("origin")
        if (
            origin is not None
            and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        ):
            return 403, "Only this page may ask."
        path = unquote(scope.get("path", ""))
        if REFUSED.match(path):
            return 403, "Not used by this page."
        _, is_file, wanted = path.partition("/file=")
        if is_file and PurePosixPath(wanted.replace("\\", "/")).suffix.lower() not in SERVED:
            return 403, "Not a kind of file that this page shows."
        if path.rstrip("/").endswith("/upload") and scope["method"] == "POST":
            return self._upload_refusal(headers)
        return None

    def _upload_refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "The length of an upload must be known."
        if int(length) > MAX_TOTAL_BYTES:
            return 413, "The upload is too large."
        if shutil.disk_usage(self.uploads).free < 2 * int(length) + SPARE_BYTES:
            return 507, "The disk is nearly full."
        return None


def _host(header: str) -> str:
    """The host's name without its port: "[::1]:7860" is "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def serve(options: argparse.Namespace, block: bool = True) -> Any:
    """Build the page and listen; returns its Blocks when ``block`` is off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    places, auth = places_of(options), credentials(options)
    check_port(options.listen, options.server_port)
    places.make()
    os.environ.setdefault("GRADIO_TEMP_DIR", str(places.web / "incoming"))
    from starlette.middleware import Middleware

    from .app import build
    from .site import Site
    from .theme import CSS, head, theme

    site = Site(places)
    site.keeper.start()
    hosts = LOCAL if options.listen in LOCAL else ()
    guard = Middleware(Guard, hosts=hosts, uploads=places.web)
    page = build(site)
    print(f"The trainer's page: http://{_shown(options)} (Ctrl+C stops it)", flush=True)
    page.launch(
        server_name=options.listen, server_port=options.server_port, auth=auth, share=False,
        inbrowser=opens_browser(options), quiet=True, ssr_mode=False, strict_cors=True,
        mcp_server=False,
        enable_monitoring=False, pwa=False, run_history=False, footer_links=[],
        allowed_paths=[str(places.runs)], max_file_size=MAX_FILE, theme=theme(),
        css_paths=[CSS], head=head(), app_kwargs={"middleware": [guard]},
        prevent_thread_lock=not block,
    )  # fmt: skip
    return page
