"""Wan's own autoencoder in fp32: ComfyUI's file with the original names, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor, nn

from .weights import (
    ModelError,
    build_network,
    init_options,
    read_file,
    read_json,
    read_weights,
    shapes_only,
)

CLASS = "AutoencoderKLWan"
CHANNELS = 16
WANTED = "Use wan_2.1_vae.safetensors, as ComfyUI does (models/vae)."
ORIGINAL, LAST = "encoder.conv1.weight", "conv2.weight"
LEVELS = 4
# What people really choose by mistake: (a name inside, what the file is).
FOREIGN = (
    ("decoder.22.bias", "a tiny VAE (taew2_1): give it as `tiny_vae`. The exact one is needed too"),
    ("encoder.down.0.block.0.conv1.weight", "a VAE of images, such as Stable Diffusion's"),
    ("blocks.0.self_attn.q.weight", "a transformer of Wan, not its VAE"),
)


def read_wan_vae(path: Path) -> nn.Module:
    """The autoencoder at ``path`` in fp32. Raises ModelError naming what it is instead."""
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise ModelError(f"VAE '{path}' was not found. {WANTED}")
    weights = read_file(path)
    for name, what in FOREIGN:
        if name in weights:
            raise ModelError(f"'{path}' is {what}. {WANTED}")
    if ORIGINAL in weights:
        options = _shape(weights, path)
        weights = convert_wan_vae_to_diffusers(dict(weights))
    else:
        options = {}
    return build_network(lambda: AutoencoderKLWan(**options), weights, path)


def is_wan_vae(path: Path) -> bool:
    """Whether the file at ``path`` has the layers of Wan 2.1's VAE, by its header. Qwen-Image's has
    the same.
    """
    with shapes_only():
        found = read_file(path, lambda name: name in (ORIGINAL, LAST))
    return ORIGINAL in found and LAST in found and found[LAST].shape[0] == CHANNELS


def _from_folder(folder: Path) -> nn.Module:
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", CLASS)
    options = init_options(AutoencoderKLWan, config)
    if kind != CLASS:
        raise ModelError(f"'{folder}' is a {kind}. {WANTED}")
    _check_channels(options["z_dim"], folder)
    return build_network(lambda: AutoencoderKLWan(**options), read_weights(folder), folder)


def _shape(weights: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """Widths of a file with the original names: four levels of two blocks, as all of them have."""
    try:
        first = weights[ORIGINAL].shape[0]
        channels = weights[LAST].shape[0]
        _check_channels(channels, source)
        # A level is two blocks and, but for the last, a step down.
        widths = [
            weights[f"encoder.downsamples.{3 * level}.residual.2.weight"].shape[0]
            for level in range(LEVELS)
        ]
    except KeyError as error:
        raise ModelError(
            f"'{source}' is no complete VAE of Wan: {error} is missing. {WANTED}"
        ) from error
    return {"base_dim": first, "z_dim": channels, "dim_mult": [width // first for width in widths]}


def _check_channels(channels: int, source: Path) -> None:
    if channels != CHANNELS:
        what = "Wan 2.2 5B's" if channels == 3 * CHANNELS else "another model's"
        raise ModelError(
            f"'{source}' is {what} VAE ({channels} channels); Wan 2.1 and Wan 2.2 14B have one of "
            f"{CHANNELS} channels. {WANTED}"
        )
