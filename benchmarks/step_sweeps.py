"""How the cost of a step grows, how two processes share it, and what sampling costs."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from repository import ROOT
from step_parts import PartTimer, peak_memory, seconds_of
from step_setup import Setting, new_session

from trainer.distill.distiller import Distiller
from trainer.distill.loop import make_accelerator
from trainer.evaluate.generate import generate_clips
from trainer.families import VideoModel, load_model
from trainer.lora.adapter import add_lora, apply_lora, lora_parameters, lora_state
from trainer.runs.guards import NanGuard

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
SAMPLING_STEPS = (50, 4)
IMAGE_COUNTS = (20, 200, 2000)


def in_fresh_process(call: Callable[..., T], *arguments: Any) -> T:
    """The result of ``call`` in a process that has done nothing but the imports."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if "forkserver" in known:
        # Before Python 3.13 the server ignores `sys.path`, and a preload that fails is silent.
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        if str(HERE) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        context.set_forkserver_preload(["step_parts"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments).result()


def sweep(setting: Setting, frames: tuple[int, ...]) -> list[dict[str, object]]:
    """Seconds and MiB of a step with the library against clip length, size, batch and images.

    One fresh process a row; what is not swept stays as in ``setting``.
    """
    rows: list[dict[str, object]] = []
    for axis, value in dict.fromkeys(_points(setting, frames)):
        changed = replace(setting, **{axis: value}).prepare()
        found = in_fresh_process(peak_memory, "library", changed, setting.repeats)
        rows.append({"axis": axis, "value": value, **found})
        print(f"{axis} {value}: {found['seconds']:.3f} s, {found['mib']:.0f} MiB", flush=True)
    return rows


def _points(setting: Setting, frames: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    yield from (("frames", count) for count in frames if count <= 24)
    yield from (("size", max(32, setting.size * part // 16 * 8)) for part in (1, 2, 3))
    yield from (("batch", setting.batch * times) for times in (1, 2, 3))
    yield from (("images", count) for count in IMAGE_COUNTS)


def scaling(setting: Setting, processes: int = 2) -> dict[str, float]:
    """Whole steps on the CPU, exchange and update included, by one process and by several.

    Every process has its own batch and one thread; all points lie on the library's trajectories,
    so that all steps cost the same. ``efficiency`` 1 means that the exchange costs nothing.
    """
    more = (*setting.more, ("trajectory.real_probability", "1.0"))
    changed = replace(setting, device="cpu", precision="fp32", more=more)
    alone, together = _launch(changed, 1), _launch(changed, processes)
    return {
        "processes": processes,
        "seconds_alone": alone,
        "seconds_together": together,
        "efficiency": alone / together,
    }


def _launch(setting: Setting, processes: int) -> float:
    """Median seconds of a step under ``accelerate launch``."""
    folder = Path(setting.workspace)
    given, result = folder / "scaling.json", folder / f"scaling-{processes}.json"
    given.write_text(json.dumps(setting.to_json()), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    launch += ["--num_processes", str(processes), "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", str(HERE / "step_sweeps.py"), str(given), str(result)]
    done = subprocess.run(
        launch, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{processes} process(es) failed:\n{done.stderr[-2000:]}")
    return float(json.loads(result.read_text(encoding="utf-8"))["seconds"])


def scaling_worker(given: Path, result: Path) -> None:
    """One of the processes that `_launch` starts."""
    values = json.loads(given.read_text(encoding="utf-8"))
    setting = Setting(**values | {"more": tuple(map(tuple, values["more"]))})
    distiller = Distiller(new_session(setting), NanGuard())
    accelerator = distiller.session.accelerator
    distiller.step(0)
    times = []
    for step in range(1, setting.repeats + 1):
        accelerator.wait_for_everyone()
        times.append(seconds_of(partial(distiller.step, step)))
    if accelerator.is_main_process:
        result.write_text(json.dumps({"seconds": median(times)}), encoding="utf-8")
    accelerator.end_training()


def sampling(setting: Setting, steps: tuple[int, int] = SAMPLING_STEPS) -> dict[str, float]:
    """The teacher with guidance in ``steps[0]`` steps against the student in ``steps[1]``.

    ``setting.batch`` clips at once, prompt to pixels. The student's LoRA is merged, as in
    ``trainer sample`` and in ComfyUI.
    """
    config = setting.config()
    accelerator = make_accelerator(config)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    teacher, student = (load_model(config.model).to(accelerator.device, dtype) for _ in range(2))
    carrier = load_model(config.model).network
    add_lora(carrier, config.lora.rank, float(config.lora.rank))
    for parameter in lora_parameters(carrier):
        parameter.data.add_(0.01)
    apply_lora(student.network, lora_state(carrier))
    runs = {"teacher": (teacher, steps[0], 9.0, "ddim"), "student": (student, steps[1], 1.0, "lcm")}
    times: dict[str, list[tuple[float, float]]] = {"teacher": [], "student": []}
    _sample(setting, student, 1, 1.0, "lcm")
    for _ in range(max(1, setting.repeats // 3)):
        for name, (model, count, guidance, sampler) in runs.items():
            times[name].append(_sample(setting, model, count, guidance, sampler))
    found = {name: [median(column) for column in zip(*t, strict=True)] for name, t in times.items()}
    return {
        "sampling_ratio": found["teacher"][0] / found["student"][0],
        "sampling_ratio_unet": found["teacher"][1] / found["student"][1],
        "teacher_seconds": found["teacher"][0],
        "student_seconds": found["student"][0],
        "decode_seconds": found["student"][0] - found["student"][1],
    }


def _sample(
    setting: Setting, model: VideoModel, steps: int, guidance: float, sampler: str
) -> tuple[float, float]:
    """Seconds of one batch of clips, and those of the UNet in them."""
    timer = PartTimer()
    prompts = ["a red star growing"] * setting.batch

    def sample() -> None:
        generate_clips(
            model, prompts, sampler=sampler, steps=steps, guidance_scale=guidance,
            size=(setting.frames, setting.size, setting.size),
        )  # fmt: skip

    with timer.wrap(VideoModel, "predict", "unet", outermost=True):
        total = seconds_of(sample)
    return total, timer.spent["unet"]


if __name__ == "__main__":
    scaling_worker(Path(sys.argv[1]), Path(sys.argv[2]))
