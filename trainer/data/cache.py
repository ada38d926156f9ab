"""A cache of tensors on disk that is never stale: its keys are hashes of everything the tensors
depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, uint8

from ..files import atomic_write

logger = logging.getLogger(__name__)

CACHE_VERSION = 1
GIB = 2**30
_STALE_SECONDS = 24 * 3600
_KEY = re.compile(r"[0-9a-f]{64}")

KeyPart = str | bytes | int | float | None


def default_cache_dir(
    platform: str = sys.platform, environ: Mapping[str, str] = os.environ, home: Path | None = None
) -> Path:
    """Where caches go: `MCM_CACHE` if set, else the platform's usual place.

    Linux `~/.cache/mcm`, macOS `~/Library/Caches/mcm`, Windows `%LOCALAPPDATA%\\mcm`.
    """
    home = home or Path.home()
    if environ.get("MCM_CACHE"):
        return Path(environ["MCM_CACHE"]).expanduser()
    if platform == "darwin":
        return home / "Library" / "Caches" / "mcm"
    if platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "mcm"
    return home / ".cache" / "mcm"


class ContentCache:
    """Dicts of tensors in safetensors files, written atomically and checked when read.

    `root`: folder of the cache, made when first needed; default `default_cache_dir`.
    `max_gib`: when the files grow beyond this many GiB, those not used for longest are deleted.

    Raises ValueError if `max_gib` is not positive.
    """

    def __init__(self, root: Path | None = None, *, max_gib: float = 10.0) -> None:
        if not max_gib > 0:
            raise ValueError(f"`max_gib`={max_gib} is not allowed; use a number above 0.")
        self.root = Path(root) if root is not None else default_cache_dir()
        self.max_bytes = int(max_gib * GIB)
        self._bytes: int | None = None

    @staticmethod
    def key(*parts: KeyPart) -> str:
        """sha256 of all `parts` (content hash, encoder hash, size, ...) and of `CACHE_VERSION`.

        Types count (1 is not "1"), and so do boundaries ("ab", "c" is not "a", "bc").

        Raises TypeError for a part that is not a str, bytes, int, float, bool or None.
        """
        digest = hashlib.sha256()
        for part in (CACHE_VERSION, *parts):
            if not isinstance(part, str | bytes | int | float | None):
                kind = type(part).__name__
                raise TypeError(
                    f"A key part of type {kind} is not allowed; use str, bytes, int, float or None."
                )
            data = part if isinstance(part, bytes) else str(part).encode("utf-8")
            digest.update(f"{type(part).__name__}:{len(data)}:".encode() + data)
        return digest.hexdigest()

    def path(self, key: str) -> Path:
        """The file of `key`, whether or not it exists."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"`key`={key!r} is not a sha256 in hex; use `ContentCache.key(...)`.")
        return self.root / key[:2] / f"{key}.safetensors"

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of `key` on the CPU; None if there are none, or if the file is damaged.

        A damaged file is logged and deleted.
        """
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning(
                "cache file %s cannot be read (%s); it will be computed again", path, error
            )
            return None
        try:
            tensors = load(data)
            sound = _metadata(data).get("sha256") == _tensor_hash(key, tensors)
        except (SafetensorError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            logger.warning("cache file %s is damaged; it will be computed again", path)
            self._remove(path)
            return None
        self._touch(path)
        return tensors

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write `tensors` under `key`, then prune the cache if it is too big.

        Raises OSError if the folder cannot be written or the disk is full.
        """
        path = self.path(key)
        # safetensors refuses views that share memory
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        data = save(plain, metadata={"sha256": _tensor_hash(key, plain)})
        path.parent.mkdir(parents=True, exist_ok=True)
        replaced = path.stat().st_size if path.exists() else 0
        atomic_write(path, data)
        known = self._bytes
        self._bytes = self.size() if known is None else known + len(data) - replaced
        if self._bytes > self.max_bytes:
            self.prune(keep=path)
        return path

    def fetch(self, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of `key`, from the cache or else from `compute()`, which is then stored.

        If the cache cannot be written, the error is logged and the run continues.
        """
        found = self.load(key)
        if found is not None:
            return found
        tensors = dict(compute())
        self.keep(key, tensors)
        return tensors

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """`store`, but a cache that cannot be written is only logged."""
        try:
            self.store(key, tensors)
        except OSError as error:
            logger.warning("the cache in %s cannot be written: %s", self.root, error)

    def size(self) -> int:
        """Bytes of all cache files on disk."""
        return sum(size for _, size, _ in self._files())

    def prune(self, keep: Path | None = None) -> list[Path]:
        """Delete the files not used for longest until `max_gib` is kept; never `keep`.

        Returns the deleted files. Files left by writers that crashed more than a day ago are
        deleted too.
        """
        for leftover in self.root.glob("??/.*.tmp"):
            if _modified(leftover) < time.time() - _STALE_SECONDS:
                self._remove(leftover)
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        removed = []
        for _, size, path in files:
            if total <= self.max_bytes:
                break
            if path != keep and self._remove(path):
                total -= size
                removed.append(path)
        self._bytes = total
        return removed

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use in ns, bytes, path) of every cache file."""
        found = []
        for path in self.root.glob("??/*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process pruned it just now
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _touch(self, path: PurePath) -> None:
        """Record the use in the modification time; many systems do not record access times."""
        try:
            os.utime(path)
        except OSError as error:
            logger.debug("the access time of cache file %s cannot be updated: %s", path, error)

    def _remove(self, path: Path) -> bool:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # open in another process on Windows
            logger.debug("cache file %s cannot be deleted: %s", path, error)
            return False
        return True


def _tensor_hash(key: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the key and of every name, dtype, shape and byte."""
    digest = hashlib.sha256(key.encode("ascii"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode("utf-8"))
        digest.update(tensor.contiguous().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """The string metadata in the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length].decode("utf-8")).get("__metadata__", {}))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
