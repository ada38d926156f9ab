"""What would installing this pack change in the Python of a ComfyUI? Nothing is installed.

    python benchmarks/install_cost.py --python PYTHON --json OUT

pip is asked for its plan (`--dry-run --report`) for each list of requirements, and the plan is
compared with what is installed there.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LISTS = ("requirements-nodes.txt", "requirements.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--python", default=sys.executable, help="the Python that runs ComfyUI")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    installed = packages(options.python)
    found = {
        "packages_before": len(installed),
        "lists": {name: compare(installed, plan(options.python, ROOT / name)) for name in LISTS},
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def packages(python: str) -> dict[str, str]:
    """Versions of what is installed, by name."""
    text = subprocess.check_output([python, "-m", "pip", "list", "--format", "json"])
    return {canonical(each["name"]): each["version"] for each in json.loads(text)}


def plan(python: str, requirements: Path) -> list[dict[str, Any]]:
    """What pip would install for ``requirements``, as its installation report has it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        subprocess.run([*command, "-r", str(requirements)], check=True)
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def compare(installed: dict[str, str], planned: list[dict[str, Any]]) -> dict[str, Any]:
    """New packages, changed ones as ``"old -> new"``, and those that would be built from source."""
    new, changed, built = {}, {}, []
    for each in planned:
        name, version = canonical(each["metadata"]["name"]), each["metadata"]["version"]
        if name in installed:
            changed[name] = f"{installed[name]} -> {version}"
        else:
            new[name] = version
        if not each["download_info"]["url"].endswith(".whl"):
            built.append(name)
    return {"new": new, "changed": changed, "built_from_source": built}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
