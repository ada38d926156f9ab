"""Weights on disk: single files, shards with an index, safetensors or ``.bin`` / ``.ckpt``."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .downloads import AGAIN, FIRST_BYTES, PICKLES, begins_as_safetensors, foreign
from .headers import entries, shapes

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "fp16.safetensors", "bin", "fp16.bin")
"""In order of preference: safetensors cannot contain code, and full precision converts to any
other.
"""
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_SHAPES_ONLY: ContextVar[bool] = ContextVar("shapes only", default=False)
_SMALL = 1 << 17
"""Numbers in a tensor that is read all the same: what is decided by contents is that small."""


class ModelError(ValueError):
    """A base model that cannot be found, read or used; the message says what to do.

    ``part`` is the setting that fixes it.
    """

    part = "model"


@contextmanager
def mended_by(setting: str) -> Iterator[None]:
    """Inside, a `ModelError` is one of ``setting``, such as "vae"."""
    try:
        yield
    except ModelError as error:
        error.part = setting
        raise


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, weights are read from the headers of their files: large tensors have a shape and no
    contents ("meta"), and hashes are empty. A model of gigabytes is checked in a second.
    """
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


@contextmanager
def with_contents() -> Iterator[None]:
    """Inside, weights are read whole even inside `shapes_only`: a vocabulary is no use without."""
    token = _SHAPES_ONLY.set(False)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


class ModelCheckpoint:
    """An empty replacement for a class stored in the first Stable Diffusion files.

    They name PyTorch Lightning's callback; `weights_only` would refuse the whole file for it.
    """


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def read_json(path: Path) -> dict[str, Any]:
    """The dict in ``path``; raises ModelError when it is missing, damaged or no dict."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"Cannot read '{path}': {error}. Download the model again.") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' is not a model config. Download the model again.")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``folder``: one file or shards with an index, safetensors or ``.bin``.

    Raises ModelError for a missing, truncated or otherwise unreadable file, and for a ``.bin``
    that holds anything but tensors (it could run code).
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights.update(read_file(path))
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The files that `read_weights` reads; raises ModelError when there are none."""
    for ending in ENDINGS:
        for stem in STEMS:
            single = folder / f"{stem}.{ending}"
            if single.is_file():
                return [single]
            for index in _index_names(stem, ending):
                if (folder / index).is_file():
                    return _shards(folder / index)
    raise ModelError(
        f"'{folder}' has no weights: expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors "
        "(or .bin, .fp16, or shards with an index). Download the model again."
    )


def _index_names(stem: str, ending: str) -> tuple[str, ...]:
    """Both spellings that diffusers has used for the index of a variant."""
    variant, _, kind = ending.rpartition(".")
    if not variant:
        return (f"{stem}.{kind}.index.json",)
    return (f"{stem}.{variant}.{kind}.index.json", f"{stem}.{kind}.index.{variant}.json")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"'{index}' lists no weights. Download the model again.")
    shards = [index.parent / Path(str(name)).name for name in sorted(set(names.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(
            f"'{index.parent}' lacks {len(missing)} of {len(shards)} weight files: "
            f"{', '.join(missing[:3])}. Finish the download."
        )
    return shards


def read_file(path: Path, keep: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """The tensors of one file whose keys ``keep`` takes, on the CPU, in the file's dtypes.

    The content decides how a file is read, not its suffix. A pickle is read with ``weights_only``,
    which runs no code, and its ``state_dict`` taken out. Raises ModelError for a missing, damaged
    or foreign file.
    """
    if not path.is_file():
        raise ModelError(f"'{path}' does not exist or is not a file. Check the path.")
    with file_errors(path):
        found = _safetensors(path, keep) if is_safetensors(path) else _pickled(path, keep)
    if not found:
        raise ModelError(f"'{path}' is not a file of weights. Download the model again.")
    return found


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Inside, what a damaged or foreign file raises is a ModelError that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"'{path}' is damaged, or holds more than tensors and was not opened because it could "
            "run code. Use the .safetensors file of this model."
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"'{path}' is damaged or incomplete ({_first_line(error)}). {AGAIN}"
        ) from error


def is_safetensors(path: Path) -> bool:
    """Whether the content of ``path`` is safetensors, whatever its suffix.

    Raises ModelError for files that are not weights: a web page, a Git LFS pointer, an archive.
    OSError when there is no such file.
    """
    with path.open("rb") as file:
        first = file.read(FIRST_BYTES)
    if begins_as_safetensors(first):
        return True
    if found := foreign(first):
        raise ModelError(f"'{path}' is {found[0]}. {found[1]}")
    return not first.startswith(PICKLES) and path.suffix.lower() == ".safetensors"


def file_metadata(path: Path) -> dict[str, str]:
    """The header's strings of a safetensors file; empty for any other. Raises ModelError."""
    with file_errors(path):
        if not is_safetensors(path):
            return {}
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})


def _safetensors(path: Path, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    if _SHAPES_ONLY.get():
        return shapes(path, keep, _SMALL)
    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys() if keep(key)}  # noqa: SIM118


def file_keys(path: Path) -> list[str]:
    """The keys in a weights file, of safetensors by the header alone. Errors as `read_file`."""
    with file_errors(path):
        if not is_safetensors(path):
            return [str(key) for key in _unpickled(path)]
        return list(entries(path)[0])


def _pickled(path: Path, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    found = _unpickled(path)
    kept = {k: v for k, v in found.items() if isinstance(v, Tensor) and keep(str(k))}
    if not _SHAPES_ONLY.get():
        return kept
    return {k: v if v.numel() <= _SMALL else v.to("meta") for k, v in kept.items()}


def _unpickled(path: Path) -> Mapping[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(torch.serialization.safe_globals([ModelCheckpoint]))
        # A map of the file: an optimizer or an average beside the weights is then never read.
        source: Any = path
        mapped = zipfile.is_zipfile(path)
        if path.suffix.lower() == ".safetensors":  # given the path, torch would go by the suffix
            mapped, source = False, stack.enter_context(path.open("rb"))
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    return found if isinstance(found, Mapping) else {}


def init_options(network: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``config`` that diffusers' ``network`` is built from, defaults filled in.

    A saved config also holds notes (``_class_name``) and, in some versions, derived values.
    """
    parameters = list(inspect.signature(network.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {p.name: config.get(p.name, p.default) for p in parameters}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise ModelError unless ``weights`` are exactly those of ``module``, by name and shape."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys())
    differing = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if missing or unexpected or differing:
        examples = (missing + unexpected + differing)[:3]
        raise ModelError(
            f"The weights in '{source}' do not fit its config.json: {len(missing)} missing, "
            f"{len(unexpected)} unexpected, {len(differing)} of another shape "
            f"({'; '.join(examples)}). Download the model again."
        )


def build_network(
    network: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """``network()`` with ``weights`` in ``dtype``, without allocating random ones.

    Buffers that no file stores keep what the constructor computed. Raises ModelError when the
    weights are not exactly the network's.
    """
    built = empty_network(network, weights, source)
    fill(built, weights, dtype)
    return built


def empty_network(
    network: Callable[[], nn.Module], weights: Mapping[str, Tensor], source: Path
) -> nn.Module:
    """``network()`` without contents. Raises ModelError when ``weights`` are not exactly its."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        built = network()
    check_fit(built, weights, source)
    return built


def fill(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    exact: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give ``network`` its ``weights`` in ``dtype``, in fp32 where ``exact`` takes the name; whole
    numbers stay what they are.
    """
    kinds = {k: torch.float32 if exact(k) else dtype for k in weights}
    cast = {k: v.to(kinds[k]) if v.is_floating_point() else v for k, v in weights.items()}
    # A copy where nothing was cast: a file's memory map must not stay open behind the model.
    own = {k: v.clone() if v.data_ptr() == weights[k].data_ptr() else v for k, v in cast.items()}
    network.load_state_dict(own, assign=True)


def tensors_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of named tensors as fp16: the same for every file form and for fp32 and fp16.

    Used where one set of weights is common in many files, so that they count as one base model.
    """
    if _SHAPES_ONLY.get():
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_hash(files: list[Path] | tuple[Path, ...]) -> str:
    """SHA-256 (hex) over the bytes of ``files`` in order."""
    if _SHAPES_ONLY.get():
        return ""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
