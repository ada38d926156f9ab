"""Promises of the run folder: one run a folder, names that every system takes, one trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.runs.folder import Run, RunError, list_runs, safe_join, slug
from trainer.runs.lock import RunLock, RunLockedError

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
    with pytest.raises(RunError, match=r"holds a run already; continue it with .*resume"):
        Run.create(run.path, changed)
    assert run.config().steps == 300
    assert Run.create(run.path, changed, resume=True).config().steps == 7


@pytest.mark.parametrize("left", ["state.json", "events.jsonl", "checkpoints/step-000001"])
def test_remains_of_a_run_without_config_are_not_overwritten(tmp_path: Path, left: str) -> None:
    (tmp_path / "r" / left).parent.mkdir(parents=True)
    (tmp_path / "r" / left).write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="holds a run already"):
        Run.create(tmp_path / "r", load_config())


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
        message = rf"is being trained by process {child.pid}; stop that one"
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
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()};"), RunLock(run):
            pass
    assert run.lock_path.read_bytes() == b""
    with RunLock(run):
        pass


def test_lock_file_written_by_hand_does_not_block(run: Run) -> None:
    run.lock_path.write_bytes(b"\xff garbage\n")
    with RunLock(run):
        assert run.lock_path.read_bytes().split()[0] == str(os.getpid()).encode()
