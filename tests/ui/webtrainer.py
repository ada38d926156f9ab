"""``ui_gradio.py`` as its user starts it, in a folder of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from patience import wait_until

ROOT = Path(__file__).resolve().parents[2]
TINY = """
images = '{images}'
steps = {steps}
seed = 3
[data]
library_clips = 2
batch_size = 2
frames_per_clip = 1
[trajectory]
ddim_timesteps = 8
[preview]
every = {every}
steps = [1, 2]
teacher_steps = 4
count = 1
[checkpoint]
every = {every}
"""


def tiny_settings(folder: Path, images: Path, steps: int, every: int = 2) -> Path:
    """A settings file for a training of seconds, named after what it is for."""
    file = folder / f"tiny-{steps}.toml"
    file.write_text(TINY.format(images=images, steps=steps, every=every), encoding="utf-8")
    return file


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class WebTrainer:
    """``ui_gradio.py`` in a process of its own, with its runs and pictures in a test folder."""

    home: Path
    runs_folder: Path | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def runs(self) -> Path:
        return self.runs_folder or self.home / "runs"

    @property
    def pictures(self) -> Path:
        return self.home / "pictures"

    @property
    def comfyui(self) -> Path:
        return self.home / "ComfyUI"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, str(ROOT / "ui_gradio.py"), f"--server-port={self.port}",
                   f"--runs={self.runs}", f"--root={self.pictures}",
                   f"--comfyui={self.comfyui}", "--no-browser"]  # fmt: skip
        with open(self.home / "server.txt", "ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.home)
        try:
            wait_until(self.answers, "an answer of the server", self.process)
        except AssertionError as error:
            raise AssertionError((self.home / "server.txt").read_text()) from error

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=60).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the server alone; trainings go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop_everything(self) -> None:
        """End the server, and every process that works in the test's folder."""
        self.stop()
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.home) in part for part in process.info["cmdline"] or ()):
                process.kill()
