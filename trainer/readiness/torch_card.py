"""Checks whether PyTorch can use this machine's graphics card."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

import psutil
import torch

from ..cards import card_gib
from ..files import GIB
from .findings import Finding, State

SECONDS = 10.0
PART = "PyTorch"
LINES = {
    "Windows": 'open pytorch.org, "Get started", choose Windows, Pip and the newest CUDA, and run '
    "the line shown there (it ends with an --index-url of PyTorch's own) with `{python} -m pip` in "
    "place of `pip3`, and with --force-reinstall",
    "Linux": "`{python} -m pip install --force-reinstall torch torchvision` (on Linux this is a "
    'CUDA build); for another CUDA choose it on pytorch.org, "Get started"',
}
"""How to install a PyTorch for NVIDIA cards, by system."""


@dataclass(frozen=True)
class Machine:
    """The machine to check: ``cards`` are names of NVIDIA cards that the driver reports.

    ``cuda`` is the CUDA version PyTorch was built for, "" for a CPU build, ``sees`` whether it can
    use a card; ``mps`` the same for Apple's. ``card_gib`` and ``ram_gib``: memory of the card that
    PyTorch sees, and main memory.
    """

    system: str
    cards: tuple[str, ...]
    cuda: str
    sees: bool
    mps: bool = False
    card_gib: float = 0.0
    ram_gib: float = 0.0

    def uses_card(self, wanted: str) -> bool:
        """Whether device ``wanted`` is the NVIDIA card here."""
        return self.sees and wanted != "cpu"


def this_machine() -> Machine:
    sees = torch.cuda.is_available()
    return Machine(
        system=platform.system(),
        cards=(torch.cuda.get_device_name(0),) if sees else nvidia_cards(),
        cuda=torch.version.cuda or torch.version.hip or "",
        sees=sees,
        mps=torch.backends.mps.is_available(),
        card_gib=card_gib() or 0.0,
        ram_gib=psutil.virtual_memory().total / GIB,
    )


def nvidia_cards() -> tuple[str, ...]:
    """Names of the NVIDIA cards of this machine, as its driver lists them; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        said = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=SECONDS, encoding="utf-8", errors="replace",
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    if said.returncode != 0:
        return ()
    return tuple(line.strip() for line in said.stdout.splitlines() if line.strip())


def card_finding(wanted: str, machine: Machine) -> Finding:
    """Whether ``machine`` can compute on device ``wanted`` ("auto", "cpu", "cuda" or "mps")."""
    version = f"version {torch.__version__}"
    if wanted == "mps" and not machine.mps:
        return _bad(f"{version} has no Apple card here; set `hardware.device` to auto or cpu.")
    if wanted == "cuda" and not machine.sees and not machine.cards:
        return _bad("There is no NVIDIA card here; set `hardware.device` to auto or cpu.")
    if machine.sees or not machine.cards or wanted == "mps":
        where = machine.cards[0] if machine.sees and wanted != "cpu" else "the CPU"
        if machine.mps and wanted in ("auto", "mps"):
            where = "Apple's card"
        return Finding(PART, "ok", f"{version} computes on {where}.")
    card = machine.cards[0]
    if machine.cuda:
        text = (
            f"{version} is made for CUDA {machine.cuda} but cannot use the {card}. Update the "
            "NVIDIA driver and restart, or install a PyTorch for an older CUDA."
        )
    else:
        text = f"{version} is built for the CPU only and cannot use the {card}. To install "
        text += f"one that can: {_line(machine.system)}."
    states: dict[str, State] = {"cuda": "bad", "cpu": "note"}
    state = states.get(wanted, "warn")
    slow = "" if state == "bad" else " Until then it trains on the CPU, many times slower."
    return Finding(PART, state, text + slow, "hardware.device")


def _line(system: str) -> str:
    return LINES.get(system, LINES["Linux"]).format(python=sys.executable)


def _bad(text: str) -> Finding:
    return Finding(PART, "bad", text, "hardware.device")
