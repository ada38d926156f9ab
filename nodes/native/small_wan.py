"""A small Wan in a folder as core's own classes: MODEL, and with `small_wan_parts` CLIP and VAE.

Core's loaders take Wan at its published sizes only: a text encoder 4096 wide, a tiny VAE of one
width. Here the same classes get the sizes of the folder. Its latents are normalised already, so the
latent format scales nothing: LATENTs, the MODEL and the trainer have the same numbers.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ...trainer.models.about import read_about
from ...trainer.models.wan import original_name, read_wan
from ...trainer.models.weights import check_fit, weight_files
from ...trainer.paths import TINY_ALONE
from .core import core_patcher, wrap
from .core_models import FPS, SIDES, STRIDE
from .info import VideoInfo, attach_info
from .model import check_clip, choose_dtype, computation_dtype
from .previews import add_previews
from .small_wan_parts import load_small_clip, load_small_vae, preview_colours

log = logging.getLogger(__name__)


def load_small_wan(folder: Path, weight_dtype: str = "default") -> tuple[Any, Any, Any]:
    """``(MODEL, CLIP, VAE)`` of ``folder``; the small parts first, so that a wrong folder fails
    early.

    Raises ValueError naming the part that is missing, damaged or of another kind.
    """
    vae = load_small_vae(folder / TINY_ALONE)
    clip = load_small_clip(folder, torch.float32 if weight_dtype == "fp32" else None)
    return load_small_model(folder, weight_dtype, normalised_format(vae)), clip, vae


def normalised_format(vae: Any) -> Any:
    """Core's format of Wan's latents that takes them as they are, with the preview colours of
    ``vae``.
    """
    import comfy.latent_formats

    format_ = comfy.latent_formats.Wan21()
    format_.latents_mean = torch.zeros_like(format_.latents_mean)
    format_.latents_std = torch.ones_like(format_.latents_std)
    format_.taesd_decoder_name = None  # of the published VAE's latents
    format_.latent_rgb_factors, format_.latent_rgb_factors_bias = preview_colours(vae)
    return format_


def load_small_model(
    folder: Path, weight_dtype: str, latent_format: Any, disable_dynamic: bool = False
) -> Any:
    """MODEL (a ModelPatcher) of the transformer in ``folder``: core's WAN21.

    ``disable_dynamic`` asks for core's plain patcher. Raises ValueError naming what is missing,
    damaged or of another kind.
    """
    place = folder / "transformer"
    found = read_wan(place)
    weights = {original_name(name) or name: value for name, value in found.weights.items()}
    shift = read_about(folder, shift=None)["shift"]
    model = _build(found.options, shift, choose_dtype(weight_dtype, weights), latent_format)
    check_fit(model.diffusion_model, weights, place)
    model.diffusion_model.load_state_dict(weights)
    info = small_info(folder)
    log.info("%s (%s): licence of the weights: %s", info.name, info.family, info.licence)
    attach_info(model, info)
    loader = load_small_model, (folder, weight_dtype, latent_format)
    patcher = core_patcher(model, loader, disable_dynamic)
    wrap(patcher, "OUTER_SAMPLE", "mcm_sound", check_clip)
    add_previews(patcher)
    return patcher


def _build(
    options: dict[str, Any], shift: int | None, dtype: torch.dtype, latent_format: Any
) -> Any:
    """Core's BaseModel with diffusers' ``options`` of a Wan and its levels, at ``shift`` where it
    has one of its own; its weights have no values yet.
    """
    from comfy.supported_models import WAN21_T2V

    heads = options["num_attention_heads"]
    config = WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": heads * options["attention_head_dim"],
            "num_heads": heads,
            "in_dim": options["in_channels"],
            "out_dim": options["out_channels"] or options["in_channels"],
            "patch_size": tuple(options["patch_size"]),
            "text_dim": options["text_dim"],
            "freq_dim": options["freq_dim"],
            "ffn_dim": options["ffn_dim"],
            "num_layers": options["num_layers"],
            "window_size": (-1, -1),
            "qk_norm": options["qk_norm"] is not None,
            "cross_attn_norm": options["cross_attn_norm"],
            "eps": options["eps"],
        }
    )
    config.latent_format = latent_format
    if shift:
        config.sampling_settings = {"shift": shift}
    config.set_inference_dtype(dtype, computation_dtype(dtype))
    model = config.get_model({}, "")
    model.diffusion_model.requires_grad_(False)
    return model


def small_info(folder: Path) -> VideoInfo:
    """The entries of ``folder``'s ``mcm.json``, completed by its family's constants."""
    from ...trainer.families import family_of

    family = family_of(folder)
    width, height, frames = family.bases[0].size
    about = read_about(
        folder, name=folder.name, frames=frames, width=width, height=height, fps=FPS,
        licence=family.licence,
    )  # fmt: skip
    return VideoInfo.of(
        family,
        about,
        scheduler_config={},
        stride=STRIDE,
        sides=SIDES,
        weight_files=tuple(weight_files(folder / "transformer")),
    )
