"""Which motion representation suits a flow? A student of each kind, of a small Wan and one style.

    python benchmarks/motion_trial.py --model work/small-wan/model --steps 300 --json OUT.json

Each student trains with the default recipe, the same example clips, batches and noise; only what
the motion loss compares differs. Measured in 1, 2, 4 and 8 steps: whether the judge in the model's
folder sees what the captions say, whether the same moves the same way as in the base model's clip
of the same noise, and how near the look is to true video in the style. Runs that broke off
continue. Beside the JSON goes a Markdown table of the same name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from trained import trained  # noqa: E402

from minimaker.contact import STILLS, write_folder  # noqa: E402
from minimaker.flow_clips import resized  # noqa: E402
from minimaker.footage import public_video  # noqa: E402
from minimaker.gallery import STYLES  # noqa: E402
from minimaker.scenes import caption_scene, random_scene  # noqa: E402
from trainer.distill import session  # noqa: E402
from trainer.evaluate.bench import Bench, Sight, fit_student, machine, merged  # noqa: E402
from trainer.evaluate.flow import clip_flow  # noqa: E402
from trainer.evaluate.networks import judge_network  # noqa: E402
from trainer.evaluate.rows import References  # noqa: E402
from trainer.evaluate.truth import as_pixels  # noqa: E402
from trainer.families import VideoModel, load_model  # noqa: E402
from trainer.files import atomic_write  # noqa: E402
from trainer.motion import representations  # noqa: E402
from trainer.motion.learned import FixedRepresentation  # noqa: E402

STEPS = (1, 2, 4, 8)
NAMED = ("diff", "raw", "low_frequency", "local_correlation", "global_correlation", "learned")
FIRST, FRAMES, NONE = "diff, first latent too", "differences of decoded frames", "no motion loss"
PROMPT_SEED, FIT_CLIPS = 77, 24
COLUMNS = ("colour", "shape", "motion", "agrees", "flow_style_ratio", "style_kid", "fd_style",
           "watermark")  # fmt: skip


@torch.no_grad()
def frame_differences(model: VideoModel) -> Callable[[Tensor], Tensor]:
    """Differences of the frames of an eighth of the size that a linear map reads from latents, one
    map for the first latent and one for the others: least squares on clips of the drawn world.
    """
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng, model.frames) for _ in range(FIT_CLIPS)]
    clips = as_pixels(np.stack([resized(public_video(each), model.height) for each in scenes]))
    latents = model.encode_clips(clips)
    small = torch.nn.functional.avg_pool3d(clips, (1, 8, 8))
    maps = []
    for start, each, told in ((0, 1, latents[:, :, :1]), (1, 4, latents[:, :, 1:])):
        shown = small[:, :, start : start + each * told.shape[2]].unflatten(2, (-1, each))
        shown = shown.permute(0, 2, 4, 5, 1, 3).flatten(0, 3).flatten(1)
        known = told.movedim(1, -1).flatten(0, 3)
        known = torch.cat([known, torch.ones(len(known), 1)], 1)
        maps.append(torch.linalg.lstsq(known, shown).solution)

    def differences(given: Tensor) -> Tensor:
        parts = []
        for told, solution in ((given[:, :, :1], maps[0]), (given[:, :, 1:], maps[1])):
            weight = solution.to(told)
            frames = torch.einsum("bcfhw,cd->bdfhw", told, weight[:-1]) + weight[-1].view(
                1, -1, 1, 1, 1
            )
            frames = frames.unflatten(1, (3, -1)).permute(0, 1, 3, 2, 4, 5).flatten(2, 3)
            parts.append(frames)
        return representations.diff(torch.cat(parts, 2))

    return differences


@contextmanager
def compared(name: str, model: VideoModel) -> Iterator[dict[str, Any]]:
    """The settings of a candidate; inside, trainings use it where it is none of the trainer's."""
    if name == NONE:
        yield {"motion.weight": 0.0, "motion.energy_weight": 0.0}
        return
    own = {FIRST: lambda: representations.diff, FRAMES: lambda: frame_differences(model)}
    if name not in own:
        yield {"motion.representation": name}
        return
    chosen, usual = FixedRepresentation(name, own[name]()), session.build_representation
    session.build_representation = lambda *_, **__: chosen  # type: ignore[assignment]
    try:
        yield {"motion.representation": "diff"}
    finally:
        session.build_representation = usual


def student(name: str, options: argparse.Namespace, model: VideoModel, images: Path) -> Path:
    """The LoRA of the candidate ``name``."""
    with compared(name, model) as own:
        settings = {
            "model": str(options.model), "images": images, "steps": options.steps,
            "data.library_clips": options.library, **own,
        }  # fmt: skip
        return trained(options.work / name.replace(",", "").replace(" ", "-"), settings)


def true_clips(captions: Sequence[str], look: Any, seed: int, model: VideoModel) -> np.ndarray:
    """Uint8 clips (N, F, H, W, 3) of the drawn world that show ``captions`` in ``look``."""
    rng = np.random.default_rng((seed, 2))
    scenes = (caption_scene(text, rng, model.frames) for text in captions)
    return np.stack([resized(look(scene), model.height) for scene in scenes])


class Table:
    """Rows of what students make, against true video in the style and the base model's clips."""

    def __init__(self, model: VideoModel, style: str, images: Path, clips: int, steps: int):
        rng = np.random.default_rng(PROMPT_SEED)
        captions = [random_scene(rng, pair=False, pan=False).caption for _ in range(clips)]
        self.model, self.look = model, STYLES[style]
        self.bench = Bench(model, judge_network(model.path / "judge"), captions)
        true = self._true("true video in the style", self.look)
        self.references = References(
            style_frames=self.bench.style_frames(images),
            style_videos=self.bench.true_videos(
                lambda said, seed: true_clips(said, self.look, seed, model)
            ),
            style_flow=true.seen.flow,
        )
        self.base = clip_flow(true.clips)
        self.rows = [self._row(true), self._row(self._true("public video", public_video))]
        teacher = self.bench.watch("base model", steps, "ddim", model.teaching.cfg)
        self.base = clip_flow(teacher.clips)
        self.rows.append(self._row(teacher))

    def _true(self, label: str, look: Any) -> Sight:
        return self.bench.watch_true(
            label, lambda said, seed: true_clips(said, look, seed, self.model)
        )

    def _row(self, sight: Sight) -> dict[str, Any]:
        row = self.bench.measure(sight.seen, self.references)
        found = clip_flow(sight.clips).agreement(self.base)
        mean, spread = float(found.mean()), 1.96 * float(found.std(ddof=1)) / len(found) ** 0.5
        row |= {"agrees": mean, "agrees_ci": [mean - spread, mean + spread]}
        print(sight.label, *(f"{name} {_text(row, name)}" for name in COLUMNS), flush=True)
        return {"label": sight.label, **row}

    def add(self, name: str, lora: Path) -> None:
        """Rows of the student ``lora`` at each number of steps."""
        with merged(self.model, fit_student(self.model, lora)) as sampling:
            for steps in STEPS:
                self.rows.append(self._row(self.bench.watch(name, steps, "lcm", **sampling)))


def _text(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return "-"
    low, high = row[f"{name}_ci"]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"


def markdown(found: dict[str, Any]) -> str:
    """The table, and what it was made on."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    lines += [
        f"| {row['label']} | {' | '.join(_text(row, name) for name in COLUMNS)} |"
        for row in found["rows"]
    ]
    about = (
        f"{found['clips']} clips a row, {found['steps']} training steps, style {found['style']}, "
        f"{found['size']}; {found['date'][:10]}, {found['machine']['device']}, "
        f"{found['machine']['threads']} threads."
    )
    return "\n".join(lines) + f"\n\n{about}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a small Wan")
    parser.add_argument("--work", type=Path, default=Path("work/motion-trial"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--style", choices=sorted(STYLES), default="poster")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--library", type=int, default=96, help="example clips")
    parser.add_argument("--clips", type=int, default=64, help="measured ones of a row")
    parser.add_argument("--base-steps", type=int, default=50)
    parser.add_argument("--candidates", nargs="+", default=[*NAMED, FIRST, FRAMES, NONE])
    options = parser.parse_args(arguments)
    model, images = load_model(str(options.model)), options.work / "style"
    if not images.is_dir():
        write_folder(images, STYLES[options.style], 1, STILLS)
    students = {name: student(name, options, model, images) for name in options.candidates}
    table = Table(model, options.style, images, options.clips, options.base_steps)
    for name, lora in students.items():
        table.add(name, lora)
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(model), "style": options.style, "steps": options.steps,
        "clips": options.clips, "size": f"{model.frames} frames of {model.width} x {model.height}",
        "rows": table.rows,
    }  # fmt: skip
    atomic_write(options.json, (json.dumps(found, indent=1) + "\n").encode("utf-8"))
    atomic_write(options.json.with_suffix(".md"), markdown(found).encode("utf-8"))


if __name__ == "__main__":
    main()
