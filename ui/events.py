"""Follows ``events.jsonl`` without reading it again each time."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT_RUNS = 8


@dataclass
class _Followed:
    offset: int = 0
    inode: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)


class EventReader:
    """``reader.read(path)`` is every whole event of a file; only what is new is parsed.

    A file that was replaced (a resumed run drops the steps it takes again) is read from the start.
    Safe to share between threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, _Followed] = OrderedDict()

    def read(self, path: Path) -> list[dict[str, Any]]:
        with self._lock:
            followed = self._files.setdefault(path, _Followed())
            self._files.move_to_end(path)
            while len(self._files) > KEPT_RUNS:
                self._files.popitem(last=False)
            try:
                self._catch_up(path, followed)
            except FileNotFoundError:
                self._files[path] = followed = _Followed()
            return list(followed.events)

    def _catch_up(self, path: Path, followed: _Followed) -> None:
        status = path.stat()
        if status.st_size < followed.offset or status.st_ino != followed.inode:
            followed.offset, followed.events, followed.inode = 0, [], status.st_ino
        if status.st_size == followed.offset:
            return
        with path.open("rb") as file:
            file.seek(followed.offset)
            content = file.read()
        whole, newline, _torn = content.rpartition(b"\n")
        for line in whole.split(b"\n") if newline else ():
            try:
                event = json.loads(line.decode("utf-8"))
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("kind"), str):
                followed.events.append(event)
        followed.offset += len(whole) + len(newline)
