"""A run is trained by one process at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from ..words import quoted
from .folder import Run, RunError
from .process import process_alive, this_process


class RunLockedError(RunError):
    """Another process trains this run."""


if sys.platform == "win32":
    import msvcrt

    # Windows locks bytes against reading too, so the locked one lies far behind the holder's line.
    _OFFSET = 1 << 30

    def _lock(file: IO[bytes], mode: int = msvcrt.LK_NBLCK) -> bool:
        os.lseek(file.fileno(), _OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), mode, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(file.fileno(), 0, os.SEEK_SET)
        return True

    def _unlock(file: IO[bytes]) -> None:
        _lock(file, msvcrt.LK_UNLCK)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


class RunLock:
    """Held by the process that trains ``run``; a context manager, raises `RunLockedError`.

    The operating system releases the lock when its holder dies, however it dies, so the file of a
    killed run is simply taken over. The file says who holds it: process id and start time.
    """

    def __init__(self, run: Run) -> None:
        self.path = run.lock_path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RunLock:
        # a+: opening must not wipe the line of a process that holds the lock.
        file = open(self.path, "a+b")  # noqa: SIM115 - closed in __exit__
        try:
            self._take(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def _take(self, file: IO[bytes]) -> None:
        try:
            free = _lock(file)
        except OSError as error:
            raise RunError(
                f"{self.path.parent} cannot be locked ({error.strerror}); choose a run folder on a "
                "local disk."
            ) from error
        if not free:
            raise RunLockedError(
                f"{self.path.parent} is being trained now, by {_holder(file)}. To stop it, run "
                f"`python -m trainer stop {quoted(self.path.parent)}`; to train beside it, choose "
                "another run folder."
            )
        pid, started = this_process()
        file.truncate(0)
        file.write(f"{pid} {started}\n".encode("ascii"))
        file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.truncate(0)
            _unlock(self._file)
            self._file.close()
            self._file = None


def lock_holder(path: Path) -> int | None:
    """Process id of the living holder of the lock file at ``path``; None when it is free."""
    try:
        with open(path, "rb") as file:
            return _living(file)
    except (FileNotFoundError, PermissionError):
        return None


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    pid = _living(file)
    return "another process" if pid is None else f"process {pid}"


def _living(file: IO[bytes]) -> int | None:
    words = file.read(100).decode("ascii", errors="replace").split()
    try:
        pid, started = int(words[0]), float(words[1])
    except (IndexError, ValueError):
        return None
    return pid if process_alive(pid, started) else None
