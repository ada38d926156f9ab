"""Full-size training and sampling on a graphics card, with random weights in the published shapes.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json      on an NVIDIA card
    python benchmarks/gpu.py --tiny --json gpu.json                  the same code, small, anywhere
    python benchmarks/gpu.py --family wan --whole-run                a run from images to its LoRA

For each family: seconds and memory of a training step of the recipe (batch 1, LoRA rank 64, all
losses, one own prediction, optimizer included) with and without each option; beside it what
`trainer.distill.estimate` foresaw; the share of the card's matrix peak, as model arithmetic
(recomputed work does not count) over what a large matrix product reaches on the same card; and
seconds for a clip in 1, 2, 4, 8 steps by the student and 50 guided steps by the teacher, decoding
included. Weights are random: time and memory do not depend on them. Rows of an earlier call in OUT,
of the same card and PyTorch, stay unless they are measured again. A whole run is told about in
``whole_run.py``.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_setup import GIB, TINY, config_of, distiller_of, machine, model_of, variants
from torch.utils.flop_counter import FlopCounterMode
from whole_run import RESULT, WRITERS, whole_run

from trainer.diffusion.sampling import SAMPLERS
from trainer.distill.batch import Batch
from trainer.distill.distiller import Distiller
from trainer.distill.estimate import META, estimate, made_batch
from trainer.distill.session import build_parts, build_student, new_memory
from trainer.distill.step import gradients
from trainer.files import atomic_write

WARM_UP = 3
STUDENT_STEPS, TEACHER_STEPS, GUIDANCE = (1, 2, 4, 8), 50, 9.0
COLUMNS = ("family", "variant", "seconds", "gib", "reserved_gib", "estimated_gib", "peak_share")


def main() -> int:
    options = arguments()
    if not torch.cuda.is_available() and not options.tiny:
        print(
            "No graphics card that PyTorch can use: nothing is measured. `--tiny` runs the same "
            "code with small models on the processor; its numbers say nothing about cards."
        )
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.whole_run:
        return whole_run(options, device)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    before = earlier(options, device)
    for found in measure(options, device):  # written row by row: a lent card may be gone soon
        found = joined(before, found)
        atomic_write(options.json, (json.dumps(found, indent=1) + "\n").encode("utf-8"))
        atomic_write(options.json.with_suffix(".md"), table(found).encode("utf-8"))
    print(table(found))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="OUT", help="file to write, and a .md beside it")
    add("--family", nargs="+", choices=tuple(TINY), default=list(TINY))
    add("--tiny", action="store_true", help="small models, to prove the code")
    add("--variant", nargs="+", metavar="NAME", help="only these variants")
    add("--repeats", type=int, default=5, help="timed steps (5)")
    add("--features", default="efficientnet-lite0", help="feature network of the discriminator")
    run = parser.add_argument_group("a whole run")
    run.add_argument("--whole-run", action="store_true", help="from an image folder to its LoRA")
    run.add_argument("--steps", type=int, help="training steps (600)")
    run.add_argument("--clips", type=int, help="clips of the trajectory library (128)")
    run.add_argument("--card", type=int, default=16, help="preset of a card of so many GB (16)")
    return checked(parser)


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.whole_run and not (len(options.family) == 1 and options.family[0] in WRITERS):
        parser.error(f"--whole-run takes one family: --family {' or '.join(WRITERS)}")
    if options.json is None and (options.tiny or not options.whole_run):
        parser.error("add --json OUT, the file to write")
    options.json = options.json or RESULT
    return options


def earlier(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What an earlier call left in OUT, if it was of this machine and of models of this size."""
    if not options.json.is_file():
        return {}
    found: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8"))
    alike = (found["machine"], found["tiny"]) == (machine(device), options.tiny)
    return found if alike else {}


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """``now`` with those rows of ``before`` that it does not measure again."""
    found = dict(now)
    for key, names in (("steps", ("family", "variant")), ("clips", ("family", "who", "steps"))):
        seen = {tuple(row[name] for name in names) for row in now[key]}
        kept = [r for r in before.get(key, []) if tuple(r[name] for name in names) not in seen]
        found[key] = kept + now[key]
    return found


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """The rows so far, the matrix peak and the machine, again with each new row; an out-of-memory
    error becomes a row.
    """
    peak = matrix_peak(device)
    chosen = variants(device)
    if options.variant:
        chosen = {name: chosen[name] for name in options.variant}
    steps: list[dict[str, Any]] = []
    clips: list[dict[str, Any]] = []
    found = {
        "steps": steps,
        "clips": clips,
        "matrix_peak_tflops": peak / 1e12,
        "tiny": options.tiny,
        "machine": machine(device),
        "date": datetime.date.today().isoformat(),
    }
    for family in options.family:
        flop = step_operations(family, options)
        for name, settings in chosen.items():
            row = {"family": family, "variant": name} | step_row(family, settings, options, device)
            if "seconds" in row:
                row["peak_share"] = flop / row["seconds"] / peak
            steps.append(row)
            print({k: short(v) for k, v in row.items()}, flush=True)
            yield found
        clips += [{"family": family} | row for row in clip_rows(family, options, device)]
        yield found


def step_row(
    family: str, settings: dict[str, Any], options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Median seconds of a warm step, the seconds of the first one, and the peak of memory."""
    config = config_of(device, options.features, settings)
    foreseen = estimate(config, model_of(family, options.tiny, META, torch.float32))
    row: dict[str, Any] = {"estimated_gib": foreseen.gib}
    release(device)
    try:
        distiller, batch = distiller_of(family, options.tiny, device, config)
        row["first_seconds"] = seconds_of(lambda: whole_step(distiller, batch), device)
        for _ in range(WARM_UP - 1):
            whole_step(distiller, batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [
            seconds_of(lambda: whole_step(distiller, batch), device) for _ in range(options.repeats)
        ]
        row["seconds"] = median(times)
        if device.type == "cuda":
            row["gib"] = torch.cuda.max_memory_allocated() / GIB
            row["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    except torch.cuda.OutOfMemoryError:
        row["error"] = "out of memory"
    return row


def whole_step(distiller: Distiller, batch: Batch) -> None:
    """Gradients and both optimizer steps, from cleared gradients; the batch is already there."""
    s = distiller.session
    for optimizer in (s.optimizer, s.discriminator_optimizer):
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
    outcome = distiller.gradients(batch, s.memory, 1.0)
    s.memory = outcome.memory
    distiller.update([outcome.logs])


def clip_rows(
    family: str, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Seconds for one clip, by number of steps, in bf16."""
    release(device)
    model = model_of(family, options.tiny, device, torch.bfloat16)
    model.to(device, torch.bfloat16)
    shape = (1, *model.latent_shape(model.frames, model.height, model.width))
    states = (1, model.text.max_tokens, model.text.width)
    text = torch.randn(states, dtype=model.dtype, device=device)
    plans = [("student", "lcm", n, {}) for n in STUDENT_STEPS]
    guided = {"guidance_scale": GUIDANCE, "negative_text": text[:1] * 0}
    plans.append(("teacher", "ddim", 4 if options.tiny else TEACHER_STEPS, guided))
    rows = []
    for who, sampler, steps, more in plans:

        def clip(sampler: str = sampler, steps: int = steps, more: Any = more) -> None:
            latents = SAMPLERS[sampler](
                model.predict, model.noise, text, shape, steps, seed=0, **more
            )
            model.decode_clips(latents)

        with torch.no_grad():
            clip()
            times = [seconds_of(clip, device) for _ in range(min(options.repeats, 3))]
        row = {"who": who, "steps": steps, "frames": model.frames, "seconds": median(times)}
        rows.append(row)
    return rows


def step_operations(family: str, options: argparse.Namespace) -> int:
    """Floating-point operations of a step that recomputes nothing, counted on shapes."""
    config = config_of(torch.device("cpu"), options.features, {"hardware.offload_idle": False})
    model = model_of(family, options.tiny, META, torch.float32)
    parts = build_parts(config, build_student(config, model, META, lambda _: None), META)
    with FlopCounterMode(display=False) as counter:
        gradients(parts, made_batch(parts), new_memory(config), 1.0)
    return counter.get_total_flops()


def matrix_peak(device: torch.device) -> float:
    """Operations a second of a large bf16 matrix product: what this card reaches in practice."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    torch.mm(a, a)
    times = [seconds_of(lambda: torch.mm(a, a), device) for _ in range(10)]
    return 2 * side**3 / median(times)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call, the card's work included."""
    synchronise(device)
    begun = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def release(device: torch.device) -> None:
    """Give back what the last variant held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in found["steps"]:
        cells = [short(row.get(name, row.get("error", ""))) for name in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| family | clip | seconds |", "|---|---|---|"]
    for row in found["clips"]:
        what = f"{row.get('frames', 16)} frames, {row['who']}, {row['steps']} step"
        what += "s" if row["steps"] > 1 else ""
        lines.append(f"| {row['family']} | {what} | {short(row['seconds'])} |")
    peak = f"Matrix peak: {found['matrix_peak_tflops']:.1f} TFLOP/s in bf16."
    warning = " Small models: no statement about full size." if found["tiny"] else ""
    where = found["machine"]
    name = where.get("graphics_card", "no graphics card, processor only")
    return "\n".join([*lines, "", f"{peak} {name}, PyTorch {where['torch']}.{warning}"]) + "\n"


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
