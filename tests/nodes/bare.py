"""A Python with no more than a ComfyUI needs, for what must run there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def names_in(requirements: Path) -> set[str]:
    """Project names in a requirements file."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    stripped = (line.partition("#")[0].strip() for line in lines)
    return {canonical(Requirement(line).name) for line in stripped if line}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """The installed ones of ``names`` and all that they require, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(canonical(name), "") for name in names]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # an optional one, or one for another system
        for line in found[name].requires or ():
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *needed.extras):
                pair = (canonical(needed.name), wanted)
                waiting += [] if pair in seen else [pair]
                seen.add(pair)
    return found


def make_python(folder: Path, packages: dict[str, Distribution]) -> Path:
    """A virtual environment whose packages are links to ``packages`` of this one; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages.values():
        link(package, site)
    return folder / "bin" / "python"


def link(package: Distribution, site: Path) -> None:
    """Link the top folders and files of ``package`` into ``site``."""
    for first in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        if not (site / first).exists():
            (site / first).symlink_to(Path(str(package.locate_file(first))))
