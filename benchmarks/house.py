"""Sizes of the house: files, functions, settings, and what a training step passes through.

  python benchmarks/house.py

A step's files are those in which a function of this project runs between `Distiller.step` and the
losses, as one step of the mini model on the CPU calls them; its records are the dataclasses that
these files define.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from repository import ROOT

PACKAGES = ("trainer", "ui", "nodes", "minimaker")
SHORT, LONG = 60, 40
STEP = "trainer/distill/"


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def long_functions(files: list[Path]) -> Iterator[str]:
    """Functions of more than `LONG` lines, docstring included."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONG:
                    yield f"{file.relative_to(ROOT).as_posix()}:{node.name} {length}"


def records(files: list[Path]) -> list[str]:
    """Dataclasses that ``files`` define."""
    found = []
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                found.append(node.name)
    return found


def step_files() -> list[Path]:
    """Files of ``trainer/distill`` in which one training step runs."""
    import torch

    from trainer.config import load_config
    from trainer.distill.distiller import Distiller
    from trainer.distill.loop import make_accelerator
    from trainer.distill.session import build_session
    from trainer.mini.words import style_folder
    from trainer.runs.guards import NanGuard

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        few = {"images": style_folder("poster"), "run": Path(folder) / "run"}
        config = load_config(overrides={**few, "hardware.device": "cpu"})
        session = build_session(
            config, make_accelerator(config), lambda text: None, lambda *counts: None
        )
        distiller, seen = Distiller(session, NanGuard()), set()

        def watch(frame, event, argument):
            seen.add(frame.f_code.co_filename)

        sys.setprofile(watch)
        distiller.step(0)
        sys.setprofile(None)
    inside = (Path(name) for name in seen)
    return sorted(f for f in inside if f.is_relative_to(ROOT / STEP))


def main() -> None:
    from trainer.config import fields

    files = sources(*PACKAGES)
    sizes = {file: lines_of(file) for file in files}
    plain = {file: size for file, size in sizes.items() if not file.name.startswith("__")}
    step = step_files()
    print(f"files of a training step: {', '.join(file.name for file in step)}")
    print(f"records that they define: {len(records(step))}")
    print(f"settings: {len(list(fields()))}")
    print(f"files: {len(files)}, lines: {sum(sizes.values())}, tests: {len(sources('tests'))}")
    print(f"median file: {statistics.median(plain.values()):.0f} lines")
    largest = max(sizes, key=lambda file: sizes[file])
    print(f"largest file: {largest.relative_to(ROOT).as_posix()}, {sizes[largest]} lines")
    print(f"files under {SHORT} lines: {sum(size < SHORT for size in plain.values())}")
    found = list(long_functions(files))
    print(f"functions over {LONG} lines: {len(found)}")
    for name in found:
        print(f"  {name}")


if __name__ == "__main__":
    main()
