"""A real ComfyUI for the tests: where it comes from, and one server of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import websocket
from patience import SECONDS
from trees import find_comfyui

__all__ = ["ComfyServer", "error_of", "find_comfyui"]
PACK = "mcm-video"


class ComfyServer:
    """One ComfyUI process with this pack, and a client for it."""

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        pack: Path,
        *options: str,
        python: Path | str = sys.executable,
        folder: str = PACK,
    ):
        """``folder`` is the pack's name below ``custom_nodes``."""
        self.base, self.client = base, uuid.uuid4().hex
        for name in ("custom_nodes", "models/loras", "models/diffusers", "input", "output", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / folder
        if not link.exists():
            link.symlink_to(pack, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(python), str(comfyui / "main.py"), "--cpu", "--port", str(self.port)]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--base-directory", str(base)]
        if os.environ.get("COMFYUI_FRONTEND"):  # the folder `static` of another frontend package
            command += ["--front-end-root", os.environ["COMFYUI_FRONTEND"]]
        self.log_path = base / "server.log"
        env = {**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *options], cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env=env
            )
        self._wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _wait(self, seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f"ComfyUI ended:\n{self.log()[-4000:]}"
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        raise TimeoutError(f"ComfyUI did not answer:\n{self.log()[-4000:]}")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=SECONDS) as answer:
            return json.loads(answer.read())

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=SECONDS) as answer:
            return answer.read()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of the answer; a 400 is an answer, not an exception."""
        data = json.dumps(body).encode("utf-8")
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                raw = answer.read()
                return answer.status, json.loads(raw) if raw else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def socket(self) -> websocket.WebSocket:
        """The connection on which previews and progress of this client's runs arrive."""
        return websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=SECONDS
        )

    def queue(self, graph: dict[str, Any], workflow: dict[str, Any] | None = None) -> str:
        """Queue an API-format graph; its prompt id. AssertionError shows why it was refused.

        ``workflow`` is the UI-format graph behind it, which saved files are to carry.
        """
        body: dict[str, Any] = {"prompt": graph, "client_id": self.client}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        status, answer = self.post("/prompt", body)
        assert status == 200, json.dumps(answer, indent=1)
        return answer["prompt_id"]

    def run(
        self,
        graph: dict[str, Any],
        workflow: dict[str, Any] | None = None,
        seconds: float = SECONDS,
    ) -> dict[str, Any]:
        """Run an API-format graph to its end; its history entry, whatever its status."""
        return self.wait(self.queue(graph, workflow), seconds)

    def wait(self, prompt: str, seconds: float = SECONDS) -> dict[str, Any]:
        """The history entry of a queued graph when it has ended, whatever its status."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt}")
            if prompt in history and history[prompt]["status"].get("status_str"):
                return history[prompt]
            assert self.process.poll() is None, f"ComfyUI died:\n{self.log()[-4000:]}"
            time.sleep(0.1)
        raise TimeoutError(f"The graph did not end:\n{self.log()[-4000:]}")

    def files(self, entry: dict[str, Any]) -> list[Path]:
        """Every file that the outputs of a history entry name."""
        found = []
        for output in entry["outputs"].values():
            for items in output.values():
                for item in items:
                    if isinstance(item, dict) and "filename" in item:
                        folder = self.base / item.get("type", "output") / item.get("subfolder", "")
                        found.append(folder / item["filename"])
        return found

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


def error_of(entry: dict[str, Any]) -> str:
    """The message of a failed run; "" when it succeeded."""
    for name, data in entry["status"]["messages"]:
        if name == "execution_error":
            return f"{data['node_type']}: {data['exception_message']}"
    return ""
