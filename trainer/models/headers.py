"""Safetensors files by their header: names, types and shapes, and the contents of small tensors.

The library maps the whole file into memory to read its header, which fails for 28 GB on a machine
with less memory than that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST = 100_000_000  # bytes of a header, as the library allows
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def entries(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of the tensors in ``path``, and where their bytes begin. Raises ValueError for a
    header that is damaged and for a file that ends too early.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MOST, size - 8):
            raise ValueError("the header is cut off")
        found = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("the header is not a table")
    found.pop("__metadata__", None)
    try:
        ends = [int(entry["data_offsets"][1]) for entry in found.values()]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError("the header has a broken entry") from error
    if 8 + length + max(ends, default=0) > size:
        raise ValueError("the file is cut off")
    return found, 8 + length


def shapes(path: Path, keep: Callable[[str], bool], small: int) -> dict[str, Tensor]:
    """The tensors whose names ``keep`` takes: those of at most ``small`` numbers with contents,
    others on "meta". Raises ValueError as `entries`, and for a type that PyTorch does not have.
    """
    found, start = entries(path)
    read = {}
    with path.open("rb") as file:
        for name, entry in found.items():
            if not keep(name):
                continue
            kind, shape = TYPES.get(entry["dtype"]), entry["shape"]
            if kind is None:
                raise ValueError(f"numbers of type {entry['dtype']} cannot be read")
            if math.prod(shape) > small:
                read[name] = torch.empty(shape, dtype=kind, device="meta")
                continue
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            raw = bytearray(file.read(end - begin))
            read[name] = (
                torch.frombuffer(raw, dtype=kind).reshape(shape)
                if raw
                else torch.empty(shape, dtype=kind)
            )
    return read
