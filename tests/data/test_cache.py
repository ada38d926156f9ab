from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.data.cache import GIB, ContentCache, default_cache_dir

TENSORS = {
    "latents": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def test_stored_tensors_come_back_exactly(tmp_path: Path) -> None:
    cache, key = ContentCache(tmp_path), ContentCache.key("image", "encoder", 64, 64)
    assert cache.load(key) is None
    path = cache.store(key, TENSORS)
    assert path.is_relative_to(tmp_path) and path.suffix == ".safetensors"
    loaded = ContentCache(tmp_path).load(key)
    assert loaded is not None and same(loaded, TENSORS)
    assert [entry for entry in path.parent.iterdir() if entry != path] == []


def test_views_of_one_tensor_can_be_stored(tmp_path: Path) -> None:
    cache, whole = ContentCache(tmp_path), torch.arange(6.0).reshape(2, 3)
    tensors = {"whole": whole, "turned": whole.T, "row": whole[1]}
    cache.store(cache.key("x"), tensors)
    loaded = cache.load(cache.key("x"))
    assert loaded is not None and same(loaded, tensors)


def test_keys_depend_on_every_part_its_type_and_borders() -> None:
    key = ContentCache.key
    keys = [
        key("ab", "c"),
        key("a", "bc"),
        key("abc"),
        key("ab", "c", None),
        key(1),
        key("1"),
        key(1.0),
        key(True),
        key(b"1"),
        key(),
    ]
    assert len(set(keys)) == len(keys)
    assert key("ab", 3) == key("ab", 3)
    with pytest.raises(TypeError, match="Tensor"):
        key(torch.zeros(1))  # type: ignore[arg-type]


def test_fetch_computes_once(tmp_path: Path) -> None:
    cache, calls = ContentCache(tmp_path), []

    def compute() -> dict[str, Tensor]:
        calls.append(1)
        return TENSORS

    key = cache.key("x")
    assert same(cache.fetch(key, compute), TENSORS)
    assert same(cache.fetch(key, compute), TENSORS)
    assert len(calls) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_damaged_file_is_logged_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache, key = ContentCache(tmp_path), ContentCache.key("x")
    path = cache.store(key, TENSORS)
    data = path.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    path.write_bytes({"flip": flipped, "cut": data[:-5], "empty": b"", "text": b"hello"}[damage])
    with caplog.at_level(logging.WARNING):
        assert cache.load(key) is None
    assert "damaged" in caplog.text
    assert not path.exists()
    assert same(cache.fetch(key, lambda: TENSORS), TENSORS)
    loaded = cache.load(key)
    assert loaded is not None and same(loaded, TENSORS)


def test_file_under_a_wrong_key_is_not_believed(tmp_path: Path) -> None:
    cache, right, wrong = ContentCache(tmp_path), ContentCache.key("a"), ContentCache.key("b")
    data = cache.store(right, TENSORS).read_bytes()
    cache.path(wrong).parent.mkdir(parents=True, exist_ok=True)
    cache.path(wrong).write_bytes(data)
    assert cache.load(wrong) is None
    assert cache.load(right) is not None


def test_longest_unused_files_go_first(tmp_path: Path) -> None:
    tensors = {"x": torch.zeros(1000)}
    cache = ContentCache(tmp_path, max_gib=3.5 * 4200 / GIB)
    keys = [cache.key(number) for number in range(4)]
    for age, key in enumerate(keys[:3]):
        path = cache.store(key, tensors)
        os.utime(path, (1000 + age, 1000 + age))
    assert cache.load(keys[0]) is not None  # a use makes the oldest the youngest
    cache.store(keys[3], tensors)
    left = [cache.path(key).exists() for key in keys]
    assert left == [True, False, True, True]
    assert cache.size() <= cache.max_bytes


def test_prune_counts_files_of_other_processes_and_clears_old_leftovers(tmp_path: Path) -> None:
    tensors = {"x": torch.zeros(1000)}
    for number in range(3):
        ContentCache(tmp_path).store(ContentCache.key(number), tensors)
    folder = next(tmp_path.iterdir())
    old, young = folder / ".old.tmp", folder / ".young.tmp"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    small = ContentCache(tmp_path, max_gib=1.5 * 4200 / GIB)
    assert len(small.prune()) == 2
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
    assert not old.exists() and young.exists()


def test_cache_that_cannot_be_written_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    cache = ContentCache(blocked)
    with caplog.at_level(logging.WARNING):
        assert same(cache.fetch(cache.key("x"), lambda: TENSORS), TENSORS)
    assert "cannot be written" in caplog.text
    with pytest.raises(OSError, match="file"):
        cache.store(cache.key("x"), TENSORS)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_gib"):
        ContentCache(tmp_path, max_gib=0)
    with pytest.raises(ValueError, match="sha256"):
        ContentCache(tmp_path).load("../../etc/passwd")


def test_default_folder_of_each_platform(tmp_path: Path) -> None:
    home = tmp_path
    assert default_cache_dir("linux", {}, home) == home / ".cache" / "mcm"
    assert default_cache_dir("darwin", {}, home) == home / "Library" / "Caches" / "mcm"
    assert default_cache_dir("win32", {}, home) == home / "AppData" / "Local" / "mcm"
    local = {"LOCALAPPDATA": str(tmp_path / "local")}
    assert default_cache_dir("win32", local, home) == tmp_path / "local" / "mcm"
    for platform in ("linux", "darwin", "win32"):
        chosen = {"MCM_CACHE": str(tmp_path / "mine"), **local}
        assert default_cache_dir(platform, chosen, home) == tmp_path / "mine"
