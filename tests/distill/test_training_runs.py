"""Whole runs on a tiny model: exact resume, stop, NaN, failing previews, several processes."""

from __future__ import annotations

import errno
import functools
import json
import math
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from patience import SECONDS, wait_until
from safetensors.torch import load_file

from trainer.config import load_config
from trainer.data.cache import ContentCache
from trainer.distill.distiller import Distiller
from trainer.distill.loop import Loop, train
from trainer.distill.preview import Previewer
from trainer.distill.session import build_session
from trainer.lora.formats import read_lora
from trainer.media import read_clip
from trainer.runs.checkpoints import latest_checkpoint
from trainer.runs.events import EventLog, read_events
from trainer.runs.folder import Run
from trainer.runs.guards import NanGuard, StopSignal, TrainingDivergedError
from trainer.runs.progress import RunLog
from trainer.runs.state import RunState, StateBoard, read_state

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
IN_TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
"""Two processes, as `accelerate launch` starts them where there are cards; on CPUs alone it starts
one."""


def settings(tiny_model: Path, style_images: Path, run: Path, **more):
    return {
        "model": str(tiny_model),
        "images": str(style_images),
        "run": str(run),
        "steps": STEPS,
        "seed": 3,
        "data.library_clips": 2,
        "data.batch_size": 2,
        "data.min_side": 16,
        "lora.rank": 2,
        "motion.representation": "learned",
        "adversarial.features": str(tiny_model.parent / "dinov2"),
        "preview.every": 0,
        "checkpoint.every": 2,
        "hardware.device": "cpu",
        **more,
    }


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "trainer", name, *arguments]


def train_command(values: dict) -> list[str]:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in values.items()]
    return command("train", *flags)


def wait_for_steps(process: subprocess.Popen, run: Path, steps: int) -> None:
    done = functools.partial(read_events, run / "events.jsonl", "step")
    wait_until(lambda: len(done()) >= steps, f"{steps} steps", process)


KILLED_AFTER_3_STEPS = """
import os, signal, sys
from trainer.cli.main import main
from trainer.distill.distiller import Distiller
step = Distiller.step
def killed(self, number, *rest):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, *rest)
Distiller.step = killed
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def straight(tiny_model, style_images, tmp_path_factory):
    """The run without a break: what every resumed one must equal."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    run = Run.create(path, load_config(overrides=settings(tiny_model, style_images, path)))
    assert train(run, None).status == "finished"
    return run


def test_the_log_counts_the_images_and_a_file_lists_them(straight, style_images):
    said = straight.log_path.read_text(encoding="utf-8")
    listed = (straight.path / "images.txt").read_text(encoding="utf-8")
    used = len(list(style_images.glob("*.png")))
    assert f"{used} used (" in said and str(straight.path / "images.txt") in said
    for image in style_images.glob("*.png"):
        assert image.name in listed and image.name not in said


def test_the_end_says_what_was_exported_and_what_to_do_next(straight):
    said = straight.log_path.read_text(encoding="utf-8")
    command = f"python -m trainer resume {straight.path} --steps {2 * STEPS}"
    assert f"Exported step {STEPS}: {straight.export_path} (" in said
    assert "models/loras" in said and f"To train further: `{command}`" in said


def assert_equal_result(run: Run, straight: Run) -> None:
    ours, theirs = load_file(run.export_path), load_file(straight.export_path)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
    steps = [event["step"] for event in read_events(run.events_path, "step")]
    assert steps == list(range(1, STEPS + 1))


def test_a_killed_run_resumes_bit_for_bit(straight, tiny_model, style_images, tmp_path):
    path = tmp_path / "getötet"
    flags = train_command(settings(tiny_model, style_images, path))[3:]
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_3_STEPS, *flags], cwd=ROOT)
    assert killed.returncode != 0
    run = Run.open(path)
    assert len(read_events(run.events_path, "step")) == 3
    state = read_state(run)
    assert state.status == "interrupted" and "trainer resume" in state.message
    assert train(run, None, resume=True).status == "finished"
    assert_equal_result(run, straight)


def test_a_stopped_run_exports_and_resumes_bit_for_bit(
    straight, tiny_model, style_images, tmp_path, monkeypatch
):
    path = tmp_path / "stopped run"
    values = settings(tiny_model, style_images, path)
    run = Run.create(path, load_config(overrides=values))
    step = Distiller.step

    def stopped_after_two(self, number, *rest):
        if number == 1:
            run.request_stop()
        return step(self, number, *rest)

    monkeypatch.setattr(Distiller, "step", stopped_after_two)
    assert train(run, None).status == "stopped"
    state = read_state(run)
    assert state.status == "stopped" and state.step == 2
    assert run.export_path.is_file()
    assert train(run, None, resume=True).status == "finished"
    assert_equal_result(run, straight)


def test_the_export_reads_back_with_its_recommendations(straight, tiny_model):
    from trainer.families import load_model

    found = read_lora(straight.export_path, load_model(str(tiny_model)).network)
    assert found.format == "kohya"
    assert found.metadata["mcm.steps"] == "4"
    assert float(found.metadata["mcm.guidance_scale"]) == 1
    assert found.metadata["mcm.timestep_scaling"].startswith("4")
    assert found.metadata["modelspec.license"] == "Apache-2.0"
    assert found.metadata["ss_steps"] == str(STEPS)
    assert "a white triangle" in found.metadata["ss_tag_frequency"]


def test_previews_show_teacher_and_student_and_measure_motion(tiny_model, style_images, tmp_path):
    path = tmp_path / "previews"
    more = {"preview.every": 1, "steps": 1, "preview.steps": (1, 2), "preview.teacher_steps": 4}
    more["data.cache"] = str(tmp_path / "cache")
    values = settings(tiny_model, style_images, path, **more)
    run = Run.create(path, load_config(overrides=values))
    train(run, None)
    folder = run.samples / "step-000001"
    frames, fps = read_clip(folder / "prompt-1-steps-2.mp4")
    assert frames.shape == (8, 256, 256, 3) and fps == 8
    for name in ("grid.webp", "grid.png"):
        assert (folder / name).stat().st_size > 1000
    first, event = read_events(run.events_path, "preview")
    assert (first["step"], first["folder"]) == (0, "step-000000"), "before the first step"
    assert (run.samples / "step-000000" / "grid.webp").is_file()
    assert not read_events(run.events_path, "alarm") or event["step"] == 1
    said = run.log_path.read_text(encoding="utf-8")
    assert "First preview, 3 sets of clips to go. Next: training." in said
    assert "Trajectory library, 2 clips to go. Next: the first preview, then training." in said
    assert set(event["motion_kept"]) == {"1", "2"}


def test_a_failing_preview_never_ends_a_run(tiny_model, style_images, tmp_path):
    path = tmp_path / "r"
    values = settings(tiny_model, style_images, path, **{"preview.every": 1, "steps": 2})
    run = Run.create(path, load_config(overrides=values))
    run.samples.rmdir()
    run.samples.write_text("in the way", encoding="utf-8")
    assert train(run, None).status == "finished"
    assert "preview at step 1 failed" in run.log_path.read_text(encoding="utf-8")


def test_nan_skips_steps_and_then_stops_with_advice(tiny_model, style_images, tmp_path):
    cache = ContentCache(tmp_path / "cache")
    path = tmp_path / "nan"
    values = settings(tiny_model, style_images, path, **{"data.cache": str(cache.root), "steps": 1})
    train(Run.create(path, load_config(overrides=values)), None)
    for file in list(cache.root.rglob("*.safetensors")):
        states = cache.load(file.stem)
        states["states"][:] = float("nan")
        cache.store(file.stem, states)

    path = tmp_path / "nan2"
    more = {"run": str(path), "steps": 20, "trajectory.real_probability": 1.0}
    run = Run.create(path, load_config(overrides={**values, **more}))
    with pytest.raises(TrainingDivergedError):
        train(run, None)
    state = read_state(run)
    assert state.status == "failed" and "TrainingDivergedError" in state.error
    assert len(read_events(run.events_path, "skipped")) >= 4
    assert not run.export_path.exists()


def test_a_run_is_reproduced_by_its_own_config(straight):
    config = straight.config()
    again = load_config(straight.config_path)
    assert config == again and config.lora.rank == 2


def test_checkpoints_hold_everything_and_old_ones_go(straight):
    names = sorted(p.name for p in straight.checkpoints.iterdir())
    assert names == ["step-000002", "step-000004", "step-000006"]
    assert latest_checkpoint(straight).name == "step-000006"


def test_a_stop_in_the_library_ends_in_order_and_keeps_its_clips(
    tiny_model, style_images, tmp_path
):
    cache, path = tmp_path / "cache", tmp_path / "early"
    more = {"data.library_clips": 500, "data.cache": str(cache)}
    values = settings(tiny_model, style_images, path, **more)
    process = subprocess.Popen(train_command(values), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(cache.rglob("*.safetensors")) != [], "a clip in the library", process)
    run = Run.open(path)
    during = read_state(run)
    assert during.stage == "trajectory library" and during.stage_total == 500
    assert "Next: the first preview, then training" in during.message
    run.request_stop()
    assert process.wait(SECONDS) == 0
    state = read_state(run)
    assert state.status == "stopped" and "nothing to export" in state.message
    assert not run.export_path.exists() and latest_checkpoint(run) is None
    kept = len(list(cache.rglob("*.safetensors")))
    assert 0 < kept < 500
    fewer = load_config(overrides={**values, "data.library_clips": kept, "steps": 1})
    assert train(Run.create(path, fewer), None).status == "finished", "the same command begins anew"
    said = run.log_path.read_text(encoding="utf-8")
    assert said.count("base model makes") == 1, "the kept ones are taken"


@pytest.fixture
def session(tiny_model, style_images, tmp_path):
    config = load_config(overrides=settings(tiny_model, style_images, tmp_path / "r"))
    return build_session(config, Accelerator(cpu=True), lambda _: None, lambda *_: None)


def test_whatever_a_preview_meets_the_run_goes_on_and_the_log_has_it(session, tmp_path):
    run = Run.create(tmp_path / "r", session.config)
    errors = [TypeError("a bug"), OSError(errno.ENOSPC, "No space left on device")]

    class Failing(Previewer):
        def make(self, *arguments):
            raise errors.pop(0)

    board = StateBoard(run, RunState.of_this_process(1))
    with EventLog(run.events_path) as events:
        loop = Loop(
            run, session.config, session, Distiller(session, NanGuard()),
            Failing(session, ["a"], 1.0), events, RunLog(run.log_path),
            StopSignal(run.stop_path), board,
        )  # fmt: skip
        assert loop.preview() is None and loop.preview() is None
    said = run.log_path.read_text(encoding="utf-8")
    assert "preview at step 0 failed: a bug" in said and "Traceback" in said
    assert "the disk is full" in said
    assert board.state.stage == ""


def test_a_nan_of_one_process_is_everybodys(tmp_path):
    script = tmp_path / "values.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from accelerate import Accelerator\n"
        "from trainer.distill.distiller import shared_values\n"
        "a = Accelerator(cpu=True)\n"
        "mine = float('nan') if a.process_index else 1.0\n"
        "found = shared_values({'loss': torch.tensor(mine), 'n': torch.tensor(2.0)}, a)\n"
        "assert found['loss'] != found['loss'] and found['n'] == 2.0, found\n",
        encoding="utf-8",
    )
    done = subprocess.run([*IN_TWO, str(script)], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_discriminators_gradient_counts_for_the_guard(session):
    distiller = Distiller(session, NanGuard())
    assert distiller.step(0).taken
    before = [p.clone() for p in session.parts.parameters]
    weight = next(iter(session.parts.discriminator.parameters()))
    handle = weight.register_hook(lambda gradient: gradient * float("nan"))
    report = distiller.step(1)
    handle.remove()
    assert not report.taken and report.values["judge_grad_norm"] != report.values["judge_grad_norm"]
    assert all(torch.equal(a, b) for a, b in zip(before, session.parts.parameters, strict=True))
    assert distiller.step(2).taken, "and nothing of it is left"


def in_two_processes(values: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [*IN_TWO, "-m", "--", *train_command(values)[2:]],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


def test_two_processes_train_one_run(tiny_model, style_images, tmp_path):
    path = tmp_path / "two"
    process = in_two_processes(settings(tiny_model, style_images, path, **{"steps": 2}))
    said, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors[-2000:]
    assert said.count("Base model tiny;") == 1, "one speaks for both"
    run = Run.open(path)
    assert read_state(run).status == "finished"
    assert [e["step"] for e in read_events(run.events_path, "step")] == [1, 2]
    assert read_events(run.events_path, "start")[0]["processes"] == 2


@pytest.mark.parametrize("ending", ["finished", "stopped"])
def test_two_processes_end_after_the_same_step(tiny_model, style_images, tmp_path, ending):
    """Each has its own clock and looks for the stop file at its own time."""
    more = {"steps": 100_000} | ({"minutes": 0.05} if ending == "finished" else {})
    process = in_two_processes(settings(tiny_model, style_images, tmp_path / "two", **more))
    if ending == "stopped":
        wait_for_steps(process, tmp_path / "two", 3)
        Run.open(tmp_path / "two").request_stop()
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, errors[-2000:]
    assert read_state(Run.open(tmp_path / "two")).status == ending


def test_the_cosine_schedule_ends_with_the_time_budget(
    tiny_model, style_images, tmp_path, monkeypatch
):
    ticks = count(0.0, 0.5)  # every look at the clock is half a second later
    monkeypatch.setattr("trainer.distill.loop.time", SimpleNamespace(monotonic=ticks.__next__))
    more = {"steps": 100_000, "minutes": 0.05, "optim.schedule": "cosine", "optim.warmup_steps": 0}
    values = settings(tiny_model, style_images, tmp_path / "timed", **more)
    run = Run.create(tmp_path / "timed", load_config(overrides=values))
    assert train(run, None).status == "finished"
    rates = [event["lr"] for event in read_events(run.events_path, "step")]
    expected = [run.config().optim.lr * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_gradient_checkpointing_gives_the_same_run(straight, tiny_model, style_images, tmp_path):
    path = tmp_path / "checkpointed"
    values = settings(tiny_model, style_images, path, **{"hardware.gradient_checkpointing": True})
    run = Run.create(path, load_config(overrides=values))
    train(run, None)
    ours, theirs = load_file(run.export_path), load_file(straight.export_path)
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor.float(), theirs[key].float(), rtol=2e-3, atol=2e-5)


def test_config_file_state_and_events_are_plain_text(straight):
    state = json.loads(straight.state_path.read_text(encoding="utf-8"))
    assert state["status"] == "finished" and state["step"] == STEPS
    assert "huber_c" in straight.config_path.read_text(encoding="utf-8")
