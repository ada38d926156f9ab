"""Promises of the run folder: one run a folder, names that every system takes, one trainer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import ConfigError, load_config, save_config, values_of, with_overrides
from trainer.files import atomic_write
from trainer.runs.folder import Run, RunError, list_runs, safe_join, slug
from trainer.runs.lock import RunLock, RunLockedError
from trainer.runs.state import RunState, write_state

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from trainer.runs.folder import Run
from trainer.runs.lock import RunLock
with RunLock(Run.open(Path(sys.argv[1]))):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "Läufe 猫" / "Mein Stil ü", load_config())


def hold_lock(run: Run) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline().strip() == b"locked"
    return child


def finish(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def test_created_run_has_the_layout_and_its_config(run: Run) -> None:
    assert run.samples.is_dir() and run.checkpoints.is_dir()
    assert Run.open(run.path) == run
    assert run.config() == with_overrides(load_config(), {"run": run.path})
    assert run.name == "Mein Stil ü"
    assert run.export_path.name == "Mein Stil ü.safetensors"


def test_relative_and_dotted_paths_get_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.create(Path("a/../b"), load_config())
    assert (run.path, run.name) == (tmp_path / "b", "b")
    monkeypatch.chdir(run.path)
    assert Run.open(Path(".")) == run


def test_folder_of_another_run_is_refused_unless_resumed(run: Run) -> None:
    changed = load_config(overrides={"steps": 7})
    with pytest.raises(RunError, match=r"already holds a run; continue it with .*resume"):
        Run.create(run.path, changed)
    assert run.config().steps == 300
    assert Run.create(run.path, changed, resume=True).config().steps == 7


@pytest.mark.parametrize("left", ["state.json", "events.jsonl", "checkpoints/step-000001"])
def test_remains_of_a_run_without_config_are_not_overwritten(tmp_path: Path, left: str) -> None:
    (tmp_path / "r" / left).parent.mkdir(parents=True)
    (tmp_path / "r" / left).write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(tmp_path / "r", load_config())


def leave(run: Run, status: str, *events: str) -> None:
    write_state(run, RunState(status=status))
    run.events_path.write_text("".join(events), encoding="utf-8")


@pytest.mark.parametrize("status", ["failed", "stopped", "interrupted"])
def test_a_run_that_ended_before_its_first_step_begins_anew(run: Run, status: str) -> None:
    leave(run, status, '{"kind": "start", "step": 0}\n')
    run.request_stop()
    changed = Run.create(run.path, load_config(overrides={"steps": 7}))
    assert changed.config().steps == 7
    assert not run.state_path.exists() and not run.events_path.exists()
    assert not run.stop_path.exists()


@pytest.mark.parametrize(
    ("status", "event"),
    [("failed", '{"kind": "step", "step": 1}\n'), ("running", ""), ("starting", "")],
)
def test_a_run_with_a_step_or_at_work_is_not_begun_anew(run: Run, status: str, event: str) -> None:
    leave(run, status, event)
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(run.path, load_config())


PATHS = {
    "images": "pics", "videos": "clips", "prompts": "p.txt", "start_from": "a.safetensors",
    "model": "models/sd15.safetensors", "motion_module": "mm.ckpt", "vae": "../vae",
    "data.cache": "cache", "adversarial.features": "nets/dino", "adversarial.clip": "nets/clip",
}  # fmt: skip


def test_paths_are_absolute_from_the_day_a_run_is_made(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = Run.create(Path("r"), load_config(overrides=PATHS))
    monkeypatch.chdir(tmp_path)
    config = values_of(run.config())
    for name, given in PATHS.items():
        assert Path(config[name]) == Path(os.path.abspath(tmp_path / "here" / given)), name
    assert Path(config["run"]) == run.path


def test_an_old_runs_relative_paths_are_its_folders(tmp_path: Path, monkeypatch) -> None:
    run = Run.create(tmp_path / "r", load_config())
    save_config(load_config(overrides={**PATHS, "run": "runs/r"}), run.config_path)
    monkeypatch.chdir(tmp_path)
    config = values_of(run.config())
    for name, given in PATHS.items():
        assert Path(config[name]) == Path(os.path.abspath(run.path / given)), name
    assert Path(config["run"]) == run.path


def test_settings_that_changed_are_read_again(run: Run) -> None:
    assert run.config() is run.config(), "read once"
    save_config(with_overrides(run.config(), {"steps": 7}), run.config_path)
    assert run.config().steps == 7
    run.config_path.unlink()
    with pytest.raises(ConfigError, match=re.escape(run.config_path.name)):
        run.config()


def test_names_that_are_no_paths_stay(run: Run) -> None:
    config = run.config()
    assert (config.model, config.recipe.adversarial.features, config.recipe.adversarial.clip) == (
        "mini", "auto", "auto",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 240, "240 bytes, 200 are allowed"),
        ("ü" * 120, "240 bytes, 200 are allowed"),
        ("a:b", "Use 'a-b'"),
        ("what?", "Use 'what'"),
        ("con", "Use 'run-con'"),
    ],
)
def test_names_are_checked_before_training(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        Run.create(tmp_path / name, load_config())
    assert not list(tmp_path.iterdir())


def test_the_longest_name_leaves_room_for_every_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path / ("n" * 200), load_config())
    atomic_write(run.path / f"{run.name}-step00000500.safetensors", b"x")


def test_timesteps_that_miss_the_last_level_are_refused_for_new_runs(run: Run) -> None:
    uneven = load_config(overrides={"trajectory.ddim_timesteps": 30})
    with pytest.raises(ConfigError, match="must divide 1000.*use 8, 10, 20, 25, 40, 50"):
        Run.create(run.path.parent / "new", uneven)
    save_config(uneven, run.config_path)
    assert run.config().recipe.trajectory.ddim_timesteps == 30, "an old run still loads"


def test_folder_with_a_log_only_is_taken(tmp_path: Path) -> None:
    # The web page opens log.txt for the process that it starts, before the run exists.
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "log.txt").write_text("x", encoding="utf-8")
    assert Run.create(tmp_path / "r", load_config()).config_path.is_file()


def test_what_is_not_a_run_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="does not exist"):
        Run.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"is not a run: it has no config.toml"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", load_config())


def test_stop_is_asked_for_and_taken_back(run: Run) -> None:
    run.clear_stop()
    run.request_stop()
    run.request_stop()
    assert run.stop_path.exists()
    run.clear_stop()
    assert not run.stop_path.exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mein Stil ü", "Mein-Stil-ü"), ("../../etc/passwd", "etc-passwd"), ("", "run"),
        ("...", "run"), ("🎬", "run"), ("con", "run-con"), ("NUL.txt", "run-NUL.txt"),
        ("a\\b:c*?", "a-b-c"), ("u\u0308", "ü"), ("v1.2_x", "v1.2_x"), ("猫 の 絵", "猫-の-絵"),
        ("x" * 300, "x" * 64), ("a. ", "a"),
    ],
)  # fmt: skip
def test_slug_is_a_safe_name_and_stable(name: str, expected: str) -> None:
    assert slug(name) == expected
    assert slug(expected) == expected


def test_safe_join_stays_inside(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    assert safe_join(root, "a b", "ü.mp4") == (root / "a b" / "ü.mp4").resolve()
    assert safe_join(root, "a", "..", "b") == (root / "b").resolve()
    (root / "link").symlink_to(tmp_path)
    for parts in (("..",), ("a", "../../x"), ("/etc/passwd",), ("link", "x"), ("../runs2",)):
        with pytest.raises(RunError, match="use a path inside"):
            safe_join(root, *parts)
    with pytest.raises(RunError, match="is not a path"):
        safe_join(root, "a\0b")


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["ä", "b", "c"]):
        run = Run.create(tmp_path / name, load_config())
        os.utime(run.config_path, (1000 - age, 1000 - age))
    run.state_path.write_text("{}", encoding="utf-8")  # c has been trained since
    (tmp_path / "not a run").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["c", "ä", "b"]
    assert list_runs(tmp_path / "none") == []


def test_second_process_cannot_train_the_same_run(run: Run) -> None:
    child = hold_lock(run)
    try:
        command = re.escape(f'python -m trainer stop "{run.path}"')  # there is a space in it
        message = rf"is being trained now, by process {child.pid}. To stop it, run `{command}`"
        for _ in range(2):  # a refused attempt must not wipe the holder's line
            with pytest.raises(RunLockedError, match=message), RunLock(run):
                pass
    finally:
        finish(child)


def test_lock_of_a_killed_process_is_taken_over(run: Run) -> None:
    child = hold_lock(run)
    finish(child)
    assert run.lock_path.read_bytes().split()[0] == str(child.pid).encode()
    with RunLock(run):
        assert run.lock_path.read_bytes().split()[0] == str(os.getpid()).encode()
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()}\."), RunLock(run):
            pass
    assert run.lock_path.read_bytes() == b""
    with RunLock(run):
        pass


def test_lock_file_written_by_hand_does_not_block(run: Run) -> None:
    run.lock_path.write_bytes(b"\xff garbage\n")
    with RunLock(run):
        assert run.lock_path.read_bytes().split()[0] == str(os.getpid()).encode()
