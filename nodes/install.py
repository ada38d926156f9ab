"""Checks how this pack is installed in ComfyUI and says what is wrong.

The messages appear in ComfyUI's log when the pack loads. A node that needs a missing package shows
that message too.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACK = Path(__file__).parent.parent  # unresolved: a link below custom_nodes keeps its own name
TITLE = "MCM few-step video"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_+~!&,;='-]+")
"""Folder names that ComfyUI can serve pages from; its frontend cuts the name at a dot."""


def unmet(requirements: Path) -> list[str]:
    """``"diffusers"`` or ``"diffusers 0.32 or newer (it has 0.20)"`` for each unmet line.

    ``requirements`` holds lines ``name`` or ``name>=version`` and comments.
    """
    found = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        name, _, least = line.partition("#")[0].partition(">=")
        if not name.strip():
            continue
        try:
            have = version(name.strip())
        except PackageNotFoundError:
            found.append(name.strip())
            continue
        if _numbers(have) < _numbers(least):
            found.append(f"{name.strip()} {least.strip()} or newer (it has {have})")
    return found


def install_line() -> str:
    """The command that installs what the nodes need into the Python that runs this ComfyUI."""
    python, file = _quoted(sys.executable), _quoted(str(PACK / "requirements-nodes.txt"))
    if importlib.util.find_spec("pip") is None:  # environments that uv made
        return f"uv pip install --python {python} -r {file}"
    return f"{python} -s -m pip install -r {file}"


def explain(problem: str) -> str:
    """``problem`` and what to do about it."""
    where = "the Command Prompt" if sys.platform == "win32" else "a terminal"
    return f"{TITLE}: {problem}. Run this in {where}, then restart ComfyUI: {install_line()}"


def load_remarks(custom_nodes: Iterable[Path]) -> list[str]:
    """One sentence for each thing that is wrong with this installation.

    ``custom_nodes`` are ComfyUI's folders of custom nodes.
    """
    remarks = []
    if missing := unmet(PACK / "requirements-nodes.txt"):
        remarks.append(explain(_lacks(missing)))
    if others := copies(PACK, custom_nodes):
        places = ", ".join(f"'{each}'" for each in (PACK, *others))
        remarks.append(
            f"{TITLE} is installed more than once: {places}. ComfyUI may load any of them; keep "
            "one and move the others out of custom_nodes."
        )
    if not PLAIN_NAME.fullmatch(PACK.name):
        remarks.append(
            f"{TITLE}: ComfyUI cannot show this pack's templates or help pages from a folder "
            f"called '{PACK.name}'. Close ComfyUI and rename it to 'mcm-video' (letters, digits, "
            "- and _ only)."
        )
    return remarks


def copies(own: Path, custom_nodes: Iterable[Path]) -> list[Path]:
    """Other folders in ``custom_nodes`` that hold this pack and that ComfyUI loads."""
    name, found = _project_name(own), []
    for folder in custom_nodes:
        for other in sorted(folder.iterdir()) if folder.is_dir() else ():
            ours = other.name == own.name and other.parent.resolve() == own.parent.resolve()
            if not ours and not other.name.endswith(".disabled") and _project_name(other) == name:
                found.append(other)
    return found


def explained(node: type) -> Any:
    """``node``, with the line to run in the error when a package cannot be imported."""

    class Explained(node):  # type: ignore[misc, valid-type]
        @classmethod
        def execute(cls, *values: Any, **inputs: Any) -> Any:
            try:
                return super().execute(*values, **inputs)
            except (ImportError, RuntimeError) as error:
                if not isinstance(error, ImportError) and not _from_import(error):
                    raise
                missing = unmet(PACK / "requirements-nodes.txt")
                problem = _lacks(missing) if missing else _first_line(error)
                raise ImportError(explain(problem)) from error

    Explained.__name__, Explained.__doc__ = node.__name__, node.__doc__
    Explained.__module__, Explained.__qualname__ = node.__module__, node.__qualname__
    return Explained


def _lacks(missing: list[str]) -> str:
    return f"ComfyUI's Python is missing {', '.join(missing)}"


def _from_import(error: BaseException) -> bool:
    """Whether diffusers wrapped an ImportError, as it does for lazy imports."""
    cause = error.__cause__
    return isinstance(cause, ImportError) or (cause is not None and _from_import(cause))


def _first_line(error: BaseException) -> str:
    """The innermost cause, which names the package."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _project_name(folder: Path) -> str | None:
    """The project name in ``folder``'s pyproject.toml; None if it cannot be read."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r'^name\s*=\s*["\']([^"\']+)["\']', text, re.MULTILINE)
    return found.group(1) if found else None


def _numbers(text: str) -> tuple[int, ...]:
    """``(0, 36, 1)`` of "0.36.1.dev0"; empty for ""."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def _quoted(text: str) -> str:
    return f'"{text}"' if re.search(r"[\s()&]", text) else text
