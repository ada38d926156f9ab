"""Weights of one part of a diffusers folder (unet, vae, text_encoder), in any file form."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

from torch import Tensor, nn

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "fp16.safetensors", "bin", "fp16.bin")
"""In order of preference: safetensors cannot carry code, full precision can become any other."""


def read_json(path: Path) -> dict[str, Any]:
    """The dict in ``path``; raises ValueError when it is missing, damaged or no dict."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"Cannot read '{path}': {error}. Download the model again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is no model config. Download the model again.")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``folder``: one file or shards with an index, safetensors or ``.bin``.

    Raises ValueError for a missing, truncated or otherwise unreadable file, and for a ``.bin``
    that holds anything but tensors (it could run code).
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights.update(_read_file(path))
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The files that :func:`read_weights` reads; raises ValueError when there are none."""
    for ending in ENDINGS:
        for stem in STEMS:
            single = folder / f"{stem}.{ending}"
            if single.is_file():
                return [single]
            for index in _index_names(stem, ending):
                if (folder / index).is_file():
                    return _shards(folder / index)
    raise ValueError(
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
        raise ValueError(f"'{index}' lists no weights. Download the model again.")
    shards = [index.parent / Path(str(name)).name for name in sorted(set(names.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(
            f"'{index.parent}' lacks {len(missing)} of {len(shards)} weight files: "
            f"{', '.join(missing[:3])}. Finish the download."
        )
    return shards


def _read_file(path: Path) -> dict[str, Tensor]:
    import comfy.utils
    from safetensors import SafetensorError

    try:
        found = comfy.utils.load_torch_file(str(path), safe_load=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' is damaged, or holds more than tensors and was not opened because it could "
            "run code. Use the .safetensors file of this model."
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is damaged or incomplete ({_first_line(error)}). Download it again."
        ) from error
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"'{path}' is not a file of weights. Download the model again.")
    return found


def init_options(network: type, config: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``config`` that diffusers' ``network`` is built from, defaults filled in.

    A saved config also holds notes (``_class_name``) and, in some versions, derived values.
    """
    parameters = list(inspect.signature(network.__init__).parameters.values())[1:]
    return {p.name: config.get(p.name, p.default) for p in parameters}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_fit(module: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Raise ValueError unless ``weights`` are exactly those of ``module``, by name and shape."""
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
        raise ValueError(
            f"The weights in '{source}' do not fit its config.json: {len(missing)} missing, "
            f"{len(unexpected)} unexpected, {len(differing)} of another shape "
            f"({'; '.join(examples)}). Download the model again."
        )
