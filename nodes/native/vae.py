"""The autoencoder of a diffusers folder as ComfyUI's VAE, and its latents' format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...trainer.models.sound import check_finite
from ...trainer.models.weights import check_fit, init_options, read_json, read_weights
from .model import SD_SCALE
from .operations import swap_operations

CLASSES = ("AutoencoderKL", "AutoencoderTiny")


def load_native_vae(folder: Path) -> Any:
    """VAE of ``folder``; raises ValueError for another class, or weights that do not fit."""
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", CLASSES[0])
    if kind not in CLASSES:
        raise ValueError(f"'{folder}' is a {kind}; this node reads {' and '.join(CLASSES)}.")
    weights = read_weights(folder)
    vae = (_load_kl if kind == CLASSES[0] else _load_tiny)(folder, config, weights)
    check_frames(vae)
    vae.patcher.cached_patcher_init = load_vae_patcher, (folder,)
    return vae


def check_frames(vae: Any) -> None:
    """Make ``vae`` raise ValueError with the cause if it decodes NaN, which would be black."""
    finish = vae.process_output

    def checked(pixels: Tensor) -> Tensor:
        check_finite(pixels, vae.first_stage_model, vae.vae_dtype)
        return finish(pixels)

    vae.process_output = checked


def load_vae_patcher(folder: Path, disable_dynamic: bool = False) -> Any:
    """The patcher of a VAE loaded again, for core (another device, a second GPU)."""
    from comfy.model_patcher import ModelPatcher

    patcher = load_native_vae(folder).patcher
    if not disable_dynamic:
        return patcher
    return ModelPatcher(patcher.model, patcher.load_device, patcher.offload_device)


def latent_format(folder: Path, vae: Any) -> Any:
    """ComfyUI's latent format of the latents of ``vae``, read from ``folder``.

    Stable Diffusion's where the scaling factor says so; else one whose preview colours are fitted
    to the autoencoder.
    """
    import comfy.latent_formats

    scale = float(read_json(folder / "config.json").get("scaling_factor", SD_SCALE))
    format_ = comfy.latent_formats.SD15(scale)
    if scale != SD_SCALE:
        format_.taesd_decoder_name = None
        factors, bias = fit_preview_colours(vae, scale)
        format_.latent_rgb_factors, format_.latent_rgb_factors_bias = factors, bias
    return format_


@torch.no_grad()
def fit_preview_colours(vae: Any, scale: float) -> tuple[list[list[float]], list[float]]:
    """The linear map ``latents @ factors + bias`` (4 -> RGB in [-1, 1]) nearest to the autoencoder;
    ``scale`` turns VAE output into latents.
    """
    images, stage = colour_fields(), vae.first_stage_model
    weight = next(stage.parameters())
    return fit_colours(stage.encode((images * 2 - 1).to(weight)).float().cpu() * scale, images)


def colour_fields() -> Tensor:
    """Smooth images (6, 3, 64, 64) in [0, 1] of many colours."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear", align_corners=True)


def fit_colours(latents: Tensor, images: Tensor) -> tuple[list[list[float]], list[float]]:
    """The linear map from the latents (N, C, h, w) of ``images`` (N, 3, H, W) to their colours in
    [-1, 1], by least squares.
    """
    colours = nn.functional.adaptive_avg_pool2d(images * 2 - 1, latents.shape[-2:])
    inputs = rearrange(latents, "n c h w -> (n h w) c")
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs, rearrange(colours, "n c h w -> (n h w) c")).solution
    return solution[:-1].tolist(), solution[-1].tolist()


def _load_kl(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """Core's AutoencoderKL with the widths of ``config``."""
    import comfy.sd

    widths, layers = config["block_out_channels"], config.get("layers_per_block", 1)
    if len(widths) != 4 or layers > 2 or config.get("norm_num_groups", 32) != 32:
        raise ValueError(
            f"'{folder}' has {len(widths)} levels of {layers} layers in "
            f"{config.get('norm_num_groups')} groups; this node reads autoencoders with 4 levels "
            "of at most 2 layers in 32 groups."
        )
    channels = config.get("latent_channels", 4)
    shape = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": shape, "embed_dim": channels}})
    vae.latent_channels = channels
    return vae


def _load_tiny(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """Core's TAESD with the layers of diffusers' AutoencoderTiny, of any width and depth.

    The layers are the same; core only builds the published size, and keys them otherwise.
    """
    import comfy.ops
    import comfy.sd
    from comfy.taesd.taesd import TAESD, Clamp
    from diffusers import AutoencoderTiny

    options = init_options(AutoencoderTiny, config)
    with torch.device("meta"):
        tiny = AutoencoderTiny(**options)
    check_fit(tiny, weights, folder)
    tiny.load_state_dict({k: v.clone() for k, v in weights.items()}, assign=True)
    swap_operations(tiny, comfy.ops.disable_weight_init)
    vae = comfy.sd.VAE(sd=TAESD(latent_channels=options.get("latent_channels", 4)).state_dict())
    stage = vae.first_stage_model
    stage.taesd_encoder = tiny.encoder.layers.requires_grad_(False)
    stage.taesd_decoder = nn.Sequential(Clamp(), *tiny.decoder.layers).requires_grad_(False)
    stage.to(vae.vae_dtype)
    if vae.device.type == "cpu":
        quicken(stage)
    vae.patcher.size = 0  # ask again: both sizes were core's own model's
    vae.size = vae.patcher.model_size()
    return vae


def quicken(network: nn.Module) -> None:
    """Make the convolutions of ``network`` faster on the CPU, in place; results change by rounding
    only.

    Channels come last in memory, as the CPU's convolutions need them: otherwise each of them moves
    its whole input and output. ReLUs overwrite what the convolution before them made.
    `benchmarks/vae_decode.py` measures both.
    """
    network.to(memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
