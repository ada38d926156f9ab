"""Safetensors files: header checks when reading, hashes, the same bytes for the same content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.downloads import foreign
from ..words import quoted
from .match import describe_base
from .pairs import LoraError

MAX_HEADER_READ = 32 * 2**20  # bytes; a real LoRA header has well under one MiB of tensor entries
MAX_HEADER_WRITE = 4_000_000  # bytes; ComfyUI's frontend stops looking for `workflow` after 4 MB
CHUNK = 2**20
RUN_SETTINGS = "config.toml"
"""A file that the folder of a run has."""
PICKLES = (
    (b"\x80", "a Python pickle (.pt/.ckpt/.bin), which can run code when opened"),
    (b"PK\x03\x04", "a zip archive or a PyTorch .pt/.ckpt file (pickle inside)"),
)
"""Other kinds of weights files, which are not LoRA files, by their first bytes."""


@dataclass(frozen=True)
class Hashes:
    """Hex SHA-256 of the whole file, its first ten digits (AutoV2, as Civitai shows), and of the
    tensor bytes only.

    The last one survives edits of the metadata: it is `sshs_model_hash` (kohya sd-scripts,
    `addnet_hash_safetensors`) and, with `0x` in front, `modelspec.hash_sha256` (ModelSpec 1.0.1).
    """

    sha256: str
    autov2: str
    tensors_sha256: str


def _refuse(path: Path, got: str) -> LoraError:
    return LoraError(
        f"`{path.name}` is not a usable LoRA file: expected safetensors, got {got}. "
        "Download or export it again as .safetensors."
    )


def _other_kind(first: bytes) -> str | None:
    pickled = next((what for magic, what in PICKLES if first.startswith(magic)), None)
    found = foreign(first)
    return pickled or (None if found is None else found[0])


def refuse_run(folder: Path) -> None:
    """Raise LoraError for the folder of a run, naming the LoRA in it."""
    if not (folder / RUN_SETTINGS).is_file():
        return
    made = folder / f"{folder.resolve().name}.safetensors"
    if made.is_file():
        raise LoraError(f"`{folder}` is a run. Its LoRA is `{made}`: give that file.")
    raise LoraError(
        f"`{folder}` is a run that has no LoRA yet: train it to its end, or run `python -m trainer "
        f"export {quoted(folder)}`."
    )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor entries and `__metadata__`. No tensor is read.

    Raises LoraError for anything that is not safetensors, for a truncated file and for a header
    over 32 MiB.
    """
    if not path.is_file():
        raise LoraError(
            f"There is no LoRA at `{path}`; choose a .safetensors file or a PEFT folder."
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(32)
        # A header of 60 or 128 bytes also starts with "<" or 0x80: safetensors has "{" at byte 8.
        what = None if first[8:9] == b"{" else _other_kind(first)
        if what is not None:
            raise _refuse(path, what)
        length = int.from_bytes(first[:8], "little")
        if len(first) < 10 or first[8:9] != b"{":
            raise _refuse(path, f"{size} bytes that do not begin with a safetensors header")
        if length > MAX_HEADER_READ:
            raise _refuse(path, f"a header of {length} bytes (allowed are {MAX_HEADER_READ})")
        if length > size - 8:
            raise _refuse(
                path, f"a truncated file ({size} bytes, its header alone needs {length + 8})"
            )
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"a header that is not JSON ({type(error).__name__})") from error
    return _checked_header(path, header, size - 8 - length)


def _checked_header(path: Path, header: Any, data_bytes: int) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise _refuse(path, "a header that is not a table of tensors")
    ends = [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (
            isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)
        ):
            raise _refuse(path, f"a broken header entry for `{name[:80]}`")
        ends.append(offsets[1])
    if max(ends) > data_bytes:
        raise _refuse(
            path,
            f"a truncated file ({data_bytes} bytes of weights, {max(ends)} announced) of a LoRA "
            f"for {describe_base(_header_widths(header))}",
        )
    return header


def _header_widths(header: Mapping[str, Any]) -> dict[str, int]:
    """Input width of each module by the header alone: the entries of `down` matrices."""
    widths: dict[str, int] = {}
    for key, entry in header.items():
        name, part, _ = key.rpartition(".weight")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        down = part and name.endswith((".lora_A", ".lora_down", ".lora.down"))
        if down and isinstance(shape, list) and len(shape) > 1 and isinstance(shape[1], int):
            widths[name.removesuffix(".down").rpartition(".")[0]] = shape[1]
    return widths


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` strings of a safetensors file; empty when it has none. Raises LoraError as
    `read_header`.
    """
    found = read_header(path).get("__metadata__") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _refuse(path, "metadata that is not a table of strings")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file on the CPU, copied out of the file's memory map. Raises
    LoraError.
    """
    read_metadata(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned: a view into the map would keep the file open, and Windows cannot replace an
            # open file.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _refuse(path, f"damaged data ({error})") from error


def read_json(path: Path, limit: int = MAX_HEADER_WRITE) -> dict[str, Any]:
    """A small JSON object from a UTF-8 file. Raises LoraError when missing, too large, or not an
    object.
    """
    try:
        if path.stat().st_size > limit:
            raise LoraError(
                f"`{path.name}` has {path.stat().st_size} bytes; allowed are {limit}. "
                "Export it again."
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoraError(
            f"Cannot read `{path}` ({error}); a PEFT folder needs it beside the weights."
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, LoraError):
            raise
        raise LoraError(
            f"`{path}` is not valid JSON ({type(error).__name__}); export the LoRA again."
        ) from error
    if not isinstance(found, dict):
        raise LoraError(
            f"`{path}` holds a {type(found).__name__}; a JSON object is needed. Export "
            "the LoRA again."
        )
    return found


def file_hashes(path: Path) -> Hashes:
    """All hashes of a safetensors file in one pass. The file must have passed `read_header`."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        first = file.read(8)
        header = file.read(int.from_bytes(first, "little"))
        whole.update(first)
        whole.update(header)
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            tensors.update(chunk)
    digest = whole.hexdigest()
    return Hashes(sha256=digest, autov2=digest[:10], tensors_sha256=tensors.hexdigest())


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of the tensor bytes as safetensors lays them out: `Hashes.tensors_sha256` of the
    file to be.
    """
    data = memoryview(safetensors.torch.save(dict(tensors)))
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in memory, the same bytes for the same content.

    The library writes metadata in random order, which would give every export another hash, so the
    header is written here, sorted; the layout of the tensors stays the library's. Raises LoraError
    for metadata that is not strings or a header over 4 MB.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise LoraError(
                f"Metadata `{key}` is a {type(value).__name__}; safetensors holds strings only: "
                "str() it."
            )
    data = memoryview(safetensors.torch.save(dict(tensors)))
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(bytes(data[8:start]).decode("utf-8"))
    header = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **entries},
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode("utf-8")
    header += b" " * (-len(header) % 8)  # the format aligns the tensors to 8 bytes with spaces
    if len(header) >= MAX_HEADER_WRITE:
        largest, text = max(metadata.items(), key=lambda item: len(item[1]), default=("", ""))
        raise LoraError(
            f"The header would take {len(header)} bytes; ComfyUI reads workflows only from headers "
            f"under {MAX_HEADER_WRITE}. Shorten `{largest}` ({len(text)} characters)."
        )
    return b"".join((len(header).to_bytes(8, "little"), header, data[start:]))
