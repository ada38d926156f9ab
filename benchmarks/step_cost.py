"""What does a training step cost, beside one in the reference code's shape?

    python benchmarks/step_cost.py --json benchmarks/results/step_cost.json
    python benchmarks/step_cost.py --all --json OUT        # also sweep, two processes, sampling
    python benchmarks/step_cost.py --model PATH --size 256 --json OUT        # a real model

Variants take turns in one process, on equal draws, LoRA weights and loss functions; a ratio is the
median over rounds of ours / reference in the same round. Memory: one process a variant. The model
is a stand-in with random weights in which UNet, encoding and decoding cost in the proportions of
ModelScope at 256 px, since the cost of a step does not depend on what the weights know.

Variants: `reference` (its own shape), `ours` (videos encoded once), `library` (teacher rollouts),
`checkpointing` and `library_checkpointing` (the same with gradient checkpointing), `recipe` (the
library with points, target and losses of the default recipe: most own predictions replayed).

`max_loss_difference` is relative, between `ours` and `reference` in fp32, over the consistency,
energy, adversarial, caption and discriminator losses (`..._as_timed`: where ours decodes in
bfloat16, as it does on processors that have it); `max_gradient_difference` likewise, of the LoRA's
and the discriminator's gradients as vectors. `library_loss_difference` compares `library`
with the same points stepped by the teacher again; the library is stored in half precision.
`flop_ratio` is the ratio of counted operations: time without the machine, and without what half
precision gains.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median

import diffusers
import torch
from step_parts import breakdown, operations, peak_memory, plot, seconds_of
from step_setup import STAND_INS, VARIANTS, Setting, Variant, build_variant
from step_sweeps import in_fresh_process, sampling, scaling, sweep
from torch import Tensor

from trainer.distill.distiller import Distiller
from trainer.families import family_of, load_model, resolve_model
from trainer.files import atomic_write
from trainer.motion.sources import TrajectoryLibrary
from trainer.runs.guards import NanGuard

COMPARED = ("consistency", "energy", "adversarial", "caption", "discriminator")
SMALL_LOSS = 1e-3
"""The energy loss is 1 - cosine, so it is rounded at 1e-7 however small it is."""
COMPARED_ROUNDS = 2
MEASURED_MEMORY = ("reference", "ours", "library", "checkpointing")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        setting = setting_of(options, workspace).prepare()
        found: dict[str, object] = {"date": datetime.date.today().isoformat()}
        found |= {"setting": shown(setting), "machine": machine(setting)}
        for part in parts(options, setting):  # written part by part: the whole takes an hour
            found |= part
            save(found, options.json)
    plot(found["breakdown"], options.plot or options.json.with_suffix(".png"))
    print(json.dumps({k: v for k, v in rounded(found).items() if not isinstance(v, dict | list)}))


def parts(options: argparse.Namespace, setting: Setting) -> Iterator[dict[str, object]]:
    """The numbers of the contract, then whatever else is asked for."""
    yield measure(setting)
    if options.processes or options.all:
        yield {"scaling": scaling(setting)}
    if options.sampling or options.all:
        sampled = sampling(setting)
        yield {"sampling": sampled, "sampling_ratio": sampled["sampling_ratio"]}
    if options.sweep or options.all:
        frames = family_of(resolve_model(setting.model_folder)).frames
        yield {"sweep": sweep(setting, frames)}


def save(found: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(rounded(found), indent=1) + "\n").encode("utf-8"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="OUT", help="file to write")
    add("--plot", type=Path, help="picture of the breakdown (beside the JSON)")
    add("--model", default="stand-in", help=f"{', '.join(STAND_INS)}, mini or a diffusers folder")
    add("--frames", type=int, help="frames of a clip (the model's own)")
    add("--size", type=int, help="side of a clip in pixels (the model's own)")
    add("--batch", type=int, default=2, help="clips in a step (2)")
    add("--repeats", type=int, default=5, help="timed rounds (5)")
    add("--images", type=int, default=24, help="style images (24)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    add("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any training setting")
    add("--sweep", action="store_true", help="cost against clip length, size, batch, images")
    add("--processes", action="store_true", help="two processes on the CPU")
    add("--sampling", action="store_true", help="4-step student against the 50-step teacher")
    add("--all", action="store_true", help="the last three")
    return parser.parse_args()


def setting_of(options: argparse.Namespace, workspace: str) -> Setting:
    """The options with the model's own frames and size where none were given."""
    own = STAND_INS.get(options.model) or load_model(options.model)
    return Setting(
        workspace=workspace,
        model=options.model,
        frames=options.frames or own.frames,
        size=options.size or (own.size if options.model in STAND_INS else own.height),
        batch=options.batch,
        repeats=options.repeats,
        images=options.images,
        device=options.device,
        precision=options.precision,
        more=tuple(tuple(text.split("=", 1)) for text in options.set),
    )


def measure(setting: Setting) -> dict[str, object]:
    """The numbers of the contract, and all that they are made of."""
    few = replace(setting, repeats=min(setting.repeats, COMPARED_ROUNDS))
    fp32 = (*setting.more, ("hardware.decode_precision", "fp32"))
    exact = in_fresh_process(differences, replace(few, precision="fp32", more=fp32))
    timed = in_fresh_process(differences, few)
    memory = {name: in_fresh_process(peak_memory, name, setting)["mib"] for name in MEASURED_MEMORY}
    variants = {}
    sessions: dict[str, object] = {}
    for name in VARIANTS:
        variants[name] = build_variant(name, setting, sessions)
    seconds = interleaved(variants, setting.repeats)
    gflop = {name: operations(variant) for name, variant in variants.items()}
    counted = {name: sum(parts.values()) for name, parts in gflop.items()}
    ratios = {name: ratio(seconds, name) for name in VARIANTS}
    return {
        "time_ratio": ratios["ours"],
        "time_ratio_library": ratios["library"],
        "memory_ratio_checkpointing": memory["checkpointing"] / memory["reference"],
        "time_ratio_checkpointing": ratios["checkpointing"],
        "time_ratio_library_checkpointing": ratios["library_checkpointing"],
        "time_ratio_recipe": ratios["recipe"],
        "memory_ratio": memory["ours"] / memory["reference"],
        "memory_ratio_library": memory["library"] / memory["reference"],
        **exact,
        "max_loss_difference_as_timed": timed["max_loss_difference"],
        "flop_ratio": {name: counted[name] / counted["reference"] for name in VARIANTS},
        "seconds": {name: median(times) for name, times in seconds.items()},
        "rounds": seconds,
        "memory_mib": memory,
        "breakdown": {name: breakdown(variant) for name, variant in variants.items()},
        "breakdown_gflop": gflop,
    }


def differences(setting: Setting) -> dict[str, float]:
    """Largest relative differences of losses and of gradients between ours and the reference."""
    torch.backends.cudnn.allow_tf32 = False  # else cards convolve "fp32" with ten bits
    losses, gradients = [0.0], [0.0]
    ours, reference = (build_variant(name, setting) for name in ("ours", "reference"))
    for number in range(len(ours.rounds)):
        for a, b in zip(ours.run(number), reference.run(number), strict=True):
            losses += [relative(a[name], b[name], SMALL_LOSS) for name in COMPARED]
        pairs = zip(gradient_vectors(ours), gradient_vectors(reference), strict=True)
        gradients += [relative(a, b) for a, b in pairs]
    return {
        "max_loss_difference": max(losses),
        "max_gradient_difference": max(gradients),
        "library_loss_difference": library_difference(build_variant("library", setting)),
    }


@dataclass(frozen=True)
class SteppedAgain:
    """A library that keeps to itself where the teacher went, so that it has to step again."""

    library: TrajectoryLibrary

    @property
    def prompts(self) -> Tensor:
        return self.library.prompts

    def points(
        self, rows: Tensor, place: Tensor, level: Tensor, noise: Tensor
    ) -> tuple[Tensor, None]:
        return self.library.points(rows, place, level, noise)[0], None


def library_difference(variant: Variant) -> float:
    """Largest relative loss difference that reading the teacher's step from the library makes."""
    session = variant.distiller.session
    guidance = torch.full((session.config.data.batch_size,), session.plan.library_guidance)
    rounds = [[replace(draws, guidance=guidance) for draws in part] for part in variant.rounds]
    stepping = replace(session, motions=SteppedAgain(session.motions))
    stored = replace(variant, rounds=rounds)
    again = Variant("stepped again", Distiller(stepping, NanGuard()), rounds)
    found = [0.0]
    for number in range(len(rounds)):
        for a, b in zip(stored.run(number), again.run(number), strict=True):
            names = COMPARED[:-1]  # the discriminator's power iterations differ from run to run
            found += [relative(a[name], b[name], SMALL_LOSS) for name in names]
    return max(found)


def gradient_vectors(variant: Variant) -> list[Tensor]:
    """All gradients of the LoRA and of the discriminator, as two vectors."""
    parts = variant.distiller.session.parts
    groups = (parts.parameters, parts.discriminator.parameters())
    return [torch.cat([p.grad.flatten() for p in group]) for group in groups]


def relative(a: Tensor, b: Tensor, smallest: float = 1e-12) -> float:
    """``|a - b| / |b|``, but over ``smallest`` where ``|b|`` is less."""
    return float((a - b).double().norm()) / max(float(b.double().norm()), smallest)


def interleaved(variants: dict[str, Variant], repeats: int) -> dict[str, list[float]]:
    """Seconds of every round by variant; each round begins with another variant."""
    names = list(variants)
    for variant in variants.values():
        variant.run(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(seconds_of(partial(variants[name].run, number)))
        last = seconds["reference"][-1]
        print(f"round {number + 1}/{repeats}: reference {last:.3f} s", flush=True)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Time of ``name`` over the reference's, round by round.

    The median; for the recipe the mean, since its rounds differ in how many points are replayed.
    """
    each = [a / b for a, b in zip(seconds[name], seconds["reference"], strict=True)]
    return mean(each) if VARIANTS[name].recipe else median(each)


def shown(setting: Setting) -> dict[str, object]:
    return {k: v for k, v in setting.to_json().items() if k != "workspace"}


def machine(setting: Setting) -> dict[str, object]:
    """What the numbers were measured on."""
    found: dict[str, object] = {"system": platform.platform(), "threads": torch.get_num_threads()}
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    found["processor"] = ", ".join(sorted(models)) or platform.processor()
    if torch.cuda.is_available() and setting.device in ("auto", "cuda"):
        found["graphics_card"] = torch.cuda.get_device_name()
    return found | {"torch": torch.__version__, "diffusers": diffusers.__version__}


def rounded(value: object) -> object:
    """Floats to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
