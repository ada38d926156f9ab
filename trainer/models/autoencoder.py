"""Autoencoders: a diffusers folder, an original VAE file, or the VAE part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor, nn

from .sd15 import LATENT_SCALE, VAE_PREFIX
from .weights import ModelError, build_network, init_options, read_file, read_json, read_weights

CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.",
                 ".proj_attn.": ".to_out.0."}  # fmt: skip
"""Attention names of diffusers before 0.17, in which ModelScopeT2V and SD 1.5 were saved."""


def read_autoencoder(path: Path) -> nn.Module:
    """The autoencoder at ``path`` in fp32: a diffusers folder or a file. Raises ModelError."""
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise ModelError(f"VAE '{path}' was not found; choose a file or a diffusers folder.")
    weights = read_file(path, lambda key: key.removeprefix(VAE_PREFIX).startswith(PARTS))
    return build_autoencoder(weights, path)


def _from_folder(folder: Path) -> nn.Module:
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "AutoencoderKL")
    if kind not in CLASSES:
        raise ModelError(f"'{folder}' is a {kind}; supported are {' and '.join(CLASSES)}.")
    network = CLASSES[kind]
    options = init_options(network, config)
    weights = {_present_name(key): value for key, value in read_weights(folder).items()}
    return _finished(build_network(lambda: network(**options), weights, folder))


def _present_name(key: str) -> str:
    for old, new in OLD_ATTENTION.items():
        key = key.replace(old, new)
    return key


def build_autoencoder(weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    """Stable Diffusion's AutoencoderKL of ``weights`` with original or diffusers keys, in fp32.

    Sizes are those of the weights. Raises ModelError for weights that are not a whole VAE.
    """
    plain = {k.removeprefix(VAE_PREFIX): v for k, v in weights.items()}
    if any(key.startswith("encoder.down.") for key in plain):
        levels = {int(key.split(".")[2]) for key in plain if key.startswith("encoder.down.")}
        names = ["a level"] * (max(levels) + 1)
        plain = convert_ldm_vae_checkpoint(
            plain, {"down_block_types": names, "up_block_types": names}
        )
    plain = {_present_name(key): value for key, value in plain.items()}
    options = _shape(plain, source)
    return _finished(build_network(lambda: AutoencoderKL(**options), plain, source))


def _shape(plain: Mapping[str, Tensor], source: Path) -> dict:
    firsts = [
        key
        for key in plain
        if key.startswith("encoder.down_blocks.") and key.endswith("resnets.0.conv1.weight")
    ]
    if not firsts or "post_quant_conv.weight" not in plain:
        raise ModelError(
            f"'{source}' has no Stable Diffusion 1.5 VAE; choose one such as "
            "vae-ft-mse-840000-ema-pruned.safetensors."
        )
    firsts.sort(key=lambda key: int(key.split(".")[2]))
    layers = {key.split(".")[4] for key in plain if key.startswith("encoder.down_blocks.0.resnets")}
    count = len(firsts)
    return {
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "block_out_channels": tuple(plain[key].shape[0] for key in firsts),
        "layers_per_block": len(layers),
        "latent_channels": plain["post_quant_conv.weight"].shape[0],
        "scaling_factor": LATENT_SCALE,
    }


def _finished(vae: nn.Module) -> nn.Module:
    # A fifth faster on a CPU, more on a graphics card.
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
