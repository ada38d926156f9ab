"""What the nodes take from ``comfy`` is in the tree under test, and their calls fit it.

Also on lines that no other test reaches. `comfy_import_guard` reads both sides without running.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from comfy_import_guard.extract import scan_pack
from comfy_import_guard.resolve import Resolver
from comfy_import_guard.signature import SignatureResolver, check_call_sites

ROOT = Path(__file__).resolve().parents[2]


class Tree:
    """A folder of ComfyUI in the place of the guard's git clone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read_file(self, _ref: str, path: str) -> str | None:
        file = self.folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def is_dir(self, _ref: str, path: str) -> bool:
        return (self.folder / path).is_dir()


def faults(pack: Path, comfyui: Path) -> list[str]:
    """Each symbol that is not there and each call that cannot bind, unless the code expects it."""
    scan, resolver = scan_pack(pack), Resolver(Tree(comfyui), "tree")
    assert not scan.unparseable and scan.references
    gone = [each for each in scan.references if not each.soft and resolver.resolve(each).breaking]
    calls = check_call_sites(SignatureResolver(resolver), scan.call_sites)
    unfit = [each for each in calls if each.hard and not each.call.soft]
    return [f"{r.file}:{r.lineno} {r.dotted}" for r in gone] + [
        f"{c.call.file}:{c.call.lineno} {c.call.dotted} {c.detail}" for c in unfit
    ]


def test_what_the_nodes_use_of_core_is_there(comfy_path):
    assert faults(ROOT / "nodes", comfy_path) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("from comfy.sd import absent_thing\n", "comfy.sd.absent_thing"),
        ("import comfy.utils\ncomfy.utils.unet_to_diffusers(1, 2, 3)\n", "unet_to_diffusers"),
    ],
)
def test_the_guard_sees_what_is_wrong(comfy_path, tmp_path, code, told):
    (tmp_path / "node.py").write_text(code, encoding="utf-8")
    (fault,) = faults(tmp_path, comfy_path)
    assert told in fault
