"""What do two few-step LoRAs on one model make? Style, motion and watermark of every way to stack
them.

    python benchmarks/stacking.py

Two students of the mini model, *poster* and *neon*, at many strengths and by other ways to join
weights; then what both predict, averaged in every step, and their finished clips, averaged. A mix
must be nearer to both styles than the base model's own look, carry no watermark, and keep shapes
and motion.
Writes benchmarks/results/stacking.json, .md and .png (what the clips look like).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import torch  # noqa: E402
from stacking_mixes import MIXES, Deltas, Mix  # noqa: E402
from torch import Tensor  # noqa: E402

from minimaker.looks import STYLES, public_video  # noqa: E402
from minimaker.truth import JUDGE, PROMPTS, true_clips  # noqa: E402
from trainer.evaluate.bench import Bench, Sight, machine  # noqa: E402
from trainer.evaluate.networks import judge_network  # noqa: E402
from trainer.evaluate.rows import References, measure, observe  # noqa: E402
from trainer.evaluate.truth import as_frames, as_pixels, draw_prompts  # noqa: E402
from trainer.families import MINI, load_model  # noqa: E402
from trainer.lora.formats import read_lora  # noqa: E402
from trainer.lora.pairs import base_modules  # noqa: E402
from trainer.mini.words import style_folder  # noqa: E402
from trainer.sheets import contact_sheet  # noqa: E402

FIRST, SECOND = "poster", "neon"
MEASURED = ("colour", "shape", "motion", "flow", "watermark")
WATERMARK, MOTION, SHAPE = 0.3, 0.9, 0.8
"""A mix has a lower watermark (its whole interval), and more right motions and shapes."""
SHOWN, SHOWN_FRAMES = 2, 4


class Stack:
    """The mini model, both students' updates, and the eye that looks at what they make."""

    def __init__(self, clips: int, seed: int) -> None:
        self.model = load_model("mini")
        self.bench = Bench(
            self.model, judge_network(JUDGE), draw_prompts(clips, seed, PROMPTS), seed
        )
        self.styles = {n: self.bench.style_frames(style_folder(n)) for n in (FIRST, SECOND)}
        self.modules = base_modules(self.model.network)
        files = {
            "start": MINI / "warm_start.safetensors",
            "first": MINI / "loras" / f"mini-{FIRST}.safetensors",
            "second": MINI / "loras" / f"mini-{SECOND}.safetensors",
        }
        found = {name: read_lora(file, self.model.network) for name, file in files.items()}
        self.hashes = {name: file.hashes.tensors_sha256 for name, file in found.items()}
        self.deltas: Deltas = {
            name: {path: pair.delta() for path, pair in file.pairs.items()}
            for name, file in found.items()
        }
        self.base = {p: self.modules[p].weight.detach().clone() for p in self.deltas["start"]}

    def put(self, update: dict[str, Tensor]) -> None:
        """The base model's weights plus ``update``."""
        with torch.no_grad():
            for path, weight in self.base.items():
                self.modules[path].weight.copy_(weight + update[path])

    def watch(self, mix: Mix, steps: int) -> Sight:
        if mix.weights is not None:
            self.put(mix.weights(self.deltas))
            return self.bench.watch(mix.name, steps, "lcm")
        if mix.outputs != "blend":
            with self._both(turns=mix.outputs == "turns"):
                return self.bench.watch(mix.name, steps, "lcm")
        clips = []
        for name in ("first", "second"):
            self.put(self.deltas[name])
            clips.append(as_pixels(self.bench.watch(mix.name, steps, "lcm").clips))
        return self.look(mix.name, (clips[0] + clips[1]) / 2)

    @contextmanager
    def _both(self, turns: bool) -> Iterator[None]:
        """The UNet predicts the mean of what both students do, or what one does in its turn (for
        an even number of steps).
        """
        forward, pair, calls = self.model.network.forward, ("first", "second"), count()

        def predict(*inputs: Any, **named: Any) -> Any:
            names = (pair[next(calls) % 2],) if turns else pair
            total = 0
            for name in names:
                self.put(self.deltas[name])
                made = forward(*inputs, **named)
                total = total + (made[0] if isinstance(made, tuple) else made.sample) / len(names)
            return (total,) if isinstance(made, tuple) else type(made)(sample=total)

        self.model.network.forward = predict
        try:
            yield
        finally:
            self.model.network.forward = forward

    def look(self, label: str, clips: Tensor) -> Sight:
        bench = self.bench
        return Sight(label, observe(clips, bench.captions, bench.network), as_frames(clips))

    def row(self, sight: Sight, name: str, group: str, steps: int | None = None) -> dict[str, Any]:
        row: dict[str, Any] = {"mix": name, "group": group, "steps": steps}
        for style, frames in self.styles.items():
            found = measure(sight.seen, References(style_frames=frames), self.bench.seed)
            row[style], row[f"{style}_ci"] = found["style_kid"], found["style_kid_ci"]
        for kind in MEASURED:
            row[kind], row[f"{kind}_ci"] = found[kind], found[f"{kind}_ci"]
        return row

    def true_rows(self) -> list[dict[str, Any]]:
        """The base model's look, either style, and a blend of both, all perfectly drawn."""
        looks = {"public video": public_video, **{n: STYLES[n] for n in self.styles}}
        seed = self.bench.seed + 1
        clips = {n: as_pixels(true_clips(self.bench.captions, k, seed)) for n, k in looks.items()}
        clips["both styles, averaged"] = (clips[FIRST] + clips[SECOND]) / 2
        return [self.row(self.look(n, c), n, "true clips") for n, c in clips.items()]


def is_mix(row: dict[str, Any], base: dict[str, Any]) -> bool:
    """Nearer to both styles than ``base``, without its watermark, with shapes and motions as told.

    Nearer at all: true clips of both styles, averaged, are little nearer to each than ``base``.
    """
    nearer = all(row[name] < base[name] for name in (FIRST, SECOND))
    kept = row["motion"] > MOTION and row["shape"] > SHAPE
    return nearer and kept and row["watermark_ci"][1] < WATERMARK


def make_table(clips: int, seed: int) -> tuple[dict[str, Any], dict[str, Sight]]:
    stack = Stack(clips, seed)
    rows = stack.true_rows()
    base, shown = rows[0], {}
    for mix in MIXES:
        for steps in mix.steps:
            print(f"{mix.name}, {steps} steps", file=sys.stderr, flush=True)
            sight = stack.watch(mix, steps)
            rows.append(stack.row(sight, mix.name, mix.group, steps))
            if steps == 4:
                shown[f"{mix.group}: {mix.name}"] = sight
    for row in rows:
        row["is_mix"] = is_mix(row, base)
    meta = {
        "command": "python benchmarks/stacking.py",
        "count": clips,
        "seed": seed,
        "loras": stack.hashes,
        "machine": machine(stack.model),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return {"rows": rows, "meta": meta}, shown


def markdown(found: dict[str, Any]) -> str:
    names = [f"{FIRST} distance", f"{SECOND} distance", *MEASURED]
    lines = [
        f"| | steps | {' | '.join(names)} | a mix? |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for row in found["rows"]:
        cells = [_cell(row, FIRST, 3), _cell(row, SECOND, 3)]
        cells += [_cell(row, name, 2) for name in MEASURED]
        verdict = "yes" if row["is_mix"] else "no"
        steps = row["steps"] or "-"
        lines.append(
            f"| {row['group']}: {row['mix']} | {steps} | {' | '.join(cells)} | {verdict} |"
        )
    meta = found["meta"]
    about = meta["machine"]
    lines += [
        "",
        f"{meta['count']} clips a row, 95 % intervals. Distance is KID on the judge's features of "
        f"frames. `{meta['command']}`, {meta['date'][:10]}, {about['threads']} thread of a shared "
        f"{about['system']} CPU, torch {about['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], name: str, places: int) -> str:
    low, high = row[f"{name}_ci"]
    return f"{row[name]:.{places}f} ({low:.{places}f} to {high:.{places}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=48, help="clips a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "stacking.json"
    )
    options = parser.parse_args()
    found, shown = make_table(options.count, options.seed)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = markdown(found)
    options.json.with_suffix(".md").write_text(table, encoding="utf-8")
    captions = draw_prompts(options.count, options.seed, PROMPTS)[:SHOWN]
    sheet = [
        (caption, [(name, sight.clips[index]) for name, sight in shown.items()])
        for index, caption in enumerate(captions)
    ]
    picture = contact_sheet(sheet, scale=1, max_frames=SHOWN_FRAMES)
    picture.quantize(128, dither=0).save(options.json.with_suffix(".png"), optimize=True)
    print(table)


if __name__ == "__main__":
    main()
