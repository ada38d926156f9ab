"""Promises of the guards and of what a person sees: stop, NaN, full disks, progress, the log."""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import re
import signal
import struct
import termios
import threading
from pathlib import Path

import pytest
import torch

from trainer.files import atomic_write
from trainer.files import DiskFullError, disk_full, disk_errors, require_disk
from trainer.runs.guards import NanGuard, StopSignal, TrainingDivergedError
from trainer.runs.progress import Progress, RunLog, memory_gib


def test_disk_check_looks_where_the_file_will_be(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "there yet", 1)
    with pytest.raises(DiskFullError, match=r"1073741824.00 GiB are needed and .* delete old runs"):
        require_disk(tmp_path / "not" / "there yet", 2**60)


def test_write_to_a_full_disk_is_explained() -> None:
    path = Path("/dev/full")
    with (
        pytest.raises(DiskFullError, match="No space left") as caught,
        disk_errors(path),
        open(path, "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert isinstance(caught.value, OSError) and caught.value.filename == str(path)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "none" / "file", b"x")


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "ü.txt"
    for content in (b"one", b"two"):
        atomic_write(file, content)
        assert file.read_bytes() == content
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write(tmp_path / "folder", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "ü.txt"]


def test_nan_steps_are_refused_then_end_the_run(tmp_path: Path) -> None:
    guard = NanGuard(max_in_a_row=3, last_checkpoint=tmp_path / "step-000400")
    assert guard.check(0.5, torch.tensor(1.0))
    assert not guard.check(torch.tensor(math.nan), 1.0)
    assert not guard.check(0.5, math.inf)
    assert guard.check(0.5, 1.0)  # the row is broken
    assert not guard.check(math.nan, 1.0)
    assert not guard.check(math.nan, 1.0)
    with pytest.raises(TrainingDivergedError, match=r"last 3 steps .*step-000400.*Halve"):
        guard.check(-math.inf, 1.0)
    assert guard.skipped == 5


def test_divergence_without_a_checkpoint_says_so() -> None:
    with pytest.raises(TrainingDivergedError, match="no checkpoint was saved yet"):
        NanGuard(1).check(math.nan, 0.0)
    with pytest.raises(ValueError, match="`max_in_a_row`=0"):
        NanGuard(0)


def test_stop_file_is_a_request(tmp_path: Path) -> None:
    with StopSignal(tmp_path / "STOP") as stop:
        assert not stop.requested and stop.reason is None
        (tmp_path / "STOP").touch()
        assert stop.requested and stop.reason == "STOP"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_the_second_aborts(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal(tmp_path / "STOP") as stop:
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name
        with pytest.raises(KeyboardInterrupt, match=number.name):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_stop_file_works_outside_the_main_thread(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    seen: list[bool] = []

    def work() -> None:
        with StopSignal(tmp_path / "STOP") as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_progress_counts_and_estimates() -> None:
    with Progress(10, "Steps", initial=4, file=io.StringIO()) as progress:
        assert progress.eta_seconds is None
        progress.update()
        progress.update(2, loss=0.5)
        assert progress.step == 7 and progress.seconds_per_step is not None
        assert progress.eta_seconds == pytest.approx(3 * progress.seconds_per_step)
        progress.update(5)
        assert progress.eta_seconds == 0


def test_progress_writes_lines_where_there_is_no_terminal() -> None:
    lines: list[str] = []
    stream = io.StringIO()
    with Progress(3, "Schritte ü", log=lines.append, line_seconds=0, file=stream) as progress:
        progress.update(loss=0.12345)
    assert stream.getvalue() == ""
    assert len(lines) == 1
    assert re.fullmatch(
        r"Schritte ü: 1/3, \S+ s each, [\d:]+ left, loss 0\.1234?5?, \d+\.\d\d GiB", lines[0]
    )


def test_progress_speaks_within_a_long_step_and_by_itself(capsys) -> None:
    told = threading.Event()
    with Progress(3, "lang", log=lambda line: told.set(), line_seconds=0.01, file=io.StringIO()):
        assert told.wait(60)  # without a single update
    with Progress(3, "stumm", line_seconds=0, file=io.StringIO()) as progress:
        progress.update()
    assert capsys.readouterr().err.startswith("stumm: 1/3")


def read_all(master: int) -> bytes:
    """What was written to a terminal whose other side is closed; Linux ends it with EIO."""
    content = b""
    try:
        while part := os.read(master, 65536):
            content += part
    except OSError as error:
        assert error.errno == errno.EIO
    return content


def test_progress_draws_a_bar_on_a_terminal() -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with (
        os.fdopen(slave, "w", encoding="utf-8") as terminal,
        Progress(4, "Steps", file=terminal) as progress,
    ):
        progress.update(4, loss=0.25)
    shown = read_all(master).decode("utf-8")
    os.close(master)
    assert "Steps: 100%" in shown and "4/4" in shown
    assert "loss=0.25" in shown and "GiB=" in shown


def test_memory_of_this_process_is_in_gib() -> None:
    assert 0.01 < memory_gib() < 1024


def test_log_goes_to_file_and_console_in_utf8(tmp_path: Path) -> None:
    console = io.StringIO()
    log = RunLog(tmp_path / "log ü.txt", console)
    log("Schritt 1: Öl 猫")
    log("zwei")
    lines = (tmp_path / "log ü.txt").read_bytes().decode("utf-8").splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in lines] == [
        "Schritt 1: Öl 猫", "zwei",
    ]  # fmt: skip
    assert console.getvalue() == "Schritt 1: Öl 猫\nzwei\n"


def test_console_of_another_encoding_does_not_end_a_run(tmp_path: Path) -> None:
    raw = io.BytesIO()
    log = RunLog(tmp_path / "log.txt", io.TextIOWrapper(raw, encoding="cp1252"))
    log("Öl 猫")
    assert raw.getvalue().decode("cp1252").strip() == "Öl ?"
    assert "Öl 猫" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_exceptions_are_logged_with_their_traceback(tmp_path: Path) -> None:
    console = io.StringIO()
    log = RunLog(tmp_path / "log.txt", console)
    try:
        require_disk(tmp_path, 2**60)
    except DiskFullError as error:
        log.exception(error)
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text and "require_disk" in text
    assert "Traceback" not in console.getvalue()
    assert "DiskFullError" in console.getvalue() and "log.txt" in console.getvalue()


def test_log_on_a_full_disk_is_named_as_such() -> None:
    with pytest.raises(DiskFullError, match="the disk is full"):
        RunLog(Path("/dev/full"), io.StringIO())("x")


def test_a_full_disk_is_found_behind_other_libraries_errors(tmp_path: Path) -> None:
    system = OSError(errno.ENOSPC, "No space left on device")
    wrapped = ValueError("could not write")
    wrapped.__cause__ = system
    rust = RuntimeError("I/O error: No space left on device (os error 28)")
    for error in (system, wrapped, rust):
        found = disk_full(error, tmp_path)
        assert isinstance(found, DiskFullError) and "the disk is full" in str(found)
    assert disk_full(ValueError("another"), tmp_path) is None
