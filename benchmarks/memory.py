"""The memory of every preset, computed from shapes: no card and no model files needed.

    python benchmarks/memory.py --json benchmarks/results/memory.json

For each family and card size the preset of `trainer.settings.presets` at the published sizes, by
`trainer.distill.estimate`: weights, LoRA, optimizer, activations and gradients of the real step.
Rows of OUT stay unless they are computed again.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import repository  # noqa: F401

from trainer.cards import CardPreset
from trainer.config import load_config
from trainer.distill.estimate import GIB, estimate
from trainer.distill.preflight import HEADROOM
from trainer.families import FAMILIES, skeleton_named

PARTS = ("weights", "trained", "optimizer", "step", "context", "waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--family", nargs="+", help="only these, such as wan wan-14b")
    options = parser.parse_args()
    rows, today = [], {"date": datetime.date.today().isoformat()}
    for name, preset in presets(options.family):
        rows.append(measure(name, preset, options.features) | today)
        print(line(rows[-1]), flush=True)
    found = {"presets": merged(options.json, rows)}
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    over = [row for row in rows if row["gib"] > HEADROOM * row["card"]]
    if over:
        raise SystemExit(f"{len(over)} presets do not fit their card: {over}")


def merged(file: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` after those of ``file`` that are not among them."""
    before = json.loads(file.read_text(encoding="utf-8"))["presets"] if file.is_file() else []
    again = {(row["family"], row["card"]) for row in rows}
    return [row for row in before if (row["family"], row["card"]) not in again] + rows


def presets(chosen: list[str] | None) -> Iterator[tuple[str, CardPreset]]:
    """(name, preset) of families and of base models whose size is another."""
    for family in FAMILIES:
        bases = [(base.name, base.cards) for base in family.bases if base.cards]
        for name, cards in ((family.name, family.cards), *bases):
            if not chosen or name in chosen:
                yield from ((name, preset) for preset in cards)


def measure(name: str, preset: CardPreset, features: str) -> dict[str, Any]:
    """GiB of a training step with ``preset``, whole and by part; ``waiting`` is in main memory."""
    settings = {"adversarial.features": features, "model": name}
    config = load_config(overrides=settings, card=preset.gigabytes)
    found = estimate(config, skeleton_named(name))
    parts = {name: round(getattr(found, name) / GIB, 2) for name in PARTS}
    title = preset.title.partition(": ")[2]
    return {
        "family": name, "card": preset.gigabytes, "preset": title,
        "gib": round(found.gib, 2),
    } | parts  # fmt: skip


def line(row: dict[str, Any]) -> str:
    parts = " | ".join(f"{row[name]:.2f}" for name in PARTS)
    return f"| {row['family']} | {row['card']} GB | {row['preset']} | {row['gib']:.2f} | {parts} |"


if __name__ == "__main__":
    main()
