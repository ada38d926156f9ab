"""A diffusers UNet as ComfyUI's MODEL: its BaseModel, its config, and the loader of a folder."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...trainer.diffusion.noise import PREDICTIONS
from ...trainer.models.about import read_about
from ...trainer.models.sound import check_latents
from ...trainer.models.weights import (
    check_fit,
    init_options,
    read_json,
    read_weights,
    weight_files,
)
from .core import new_patcher, wrap
from .info import VideoInfo, attach_info
from .latents import sample_videos
from .operations import swap_operations
from .patches import report_lost_patches

log = logging.getLogger(__name__)

SD_SCALE = 0.18215
"""Scaling factor of Stable Diffusion 1.x and 2.x latents, which ModelScopeT2V uses too."""
BETA_SCHEDULES = {
    "scaled_linear": "linear",
    "linear": "sqrt_linear",
    "squaredcos_cap_v2": "cosine",  # core's own "squaredcos_cap_v2" does not run
}
"""diffusers' name -> ComfyUI's name of the same betas."""
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


def sampling_settings(scheduler_config: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's ``sampling_settings`` for diffusers' ``scheduler_config``.

    Without them core would silently sample with Stable Diffusion's betas. Raises ValueError for a
    schedule that ComfyUI cannot make.
    """
    schedule = scheduler_config.get("beta_schedule")
    if schedule not in BETA_SCHEDULES or scheduler_config.get("trained_betas") is not None:
        raise ValueError(
            f"`beta_schedule`={schedule!r} (or trained betas) is not supported; the base model's "
            f"scheduler_config.json must name {', '.join(BETA_SCHEDULES)}."
        )
    return {
        "beta_schedule": BETA_SCHEDULES[schedule],
        "linear_start": scheduler_config.get("beta_start", 0.00085),
        "linear_end": scheduler_config.get("beta_end", 0.012),
        "timesteps": scheduler_config.get("num_train_timesteps", 1000),
        "zsnr": bool(scheduler_config.get("rescale_betas_zero_snr", False)),
    }


def build_native_model(
    unet_class: type,
    options: dict[str, Any],
    *,
    dtype: torch.dtype,
    scheduler_config: dict[str, Any],
    latent_format: Any = None,
    device: torch.device | None = None,
) -> Any:
    """A comfy BaseModel around ``unet_class(**options)``, its weights still on meta.

    ``unet_class`` is a diffusers UNet with the mixin `NativeVideoUNet`; ``dtype`` is
    what its weights will be stored in, and the computation's dtype follows from the device as for
    core's own models. ``latent_format`` None means Stable Diffusion's.
    """
    import comfy.latent_formats
    from comfy.model_base import ModelType

    kinds = dict(zip(PREDICTIONS, (ModelType.EPS, ModelType.V_PREDICTION), strict=True))
    prediction = scheduler_config.get("prediction_type", PREDICTIONS[0])
    if prediction not in kinds:
        raise ValueError(
            f"`prediction_type`={prediction!r} is not supported; use {' or '.join(kinds)}."
        )
    config = _config_class()({"in_channels": 4, "model_channels": options["block_out_channels"][0]})
    config.latent_format = latent_format or comfy.latent_formats.SD15(SD_SCALE)
    config.sampling_settings = sampling_settings(scheduler_config)
    config.set_inference_dtype(dtype, computation_dtype(dtype))

    def on_meta(operations: Any = None, **_config: Any) -> Any:
        with torch.device("meta"):
            unet = unet_class(**options)
        for parameter in unet.parameters():  # ComfyUI records these as the types to load into
            parameter.data = parameter.data.to(storage_dtype(parameter, dtype))
        left = swap_operations(unet, operations)
        if left:
            raise ValueError(f"Layers {left[:3]} of {unet_class.__name__} cannot be offloaded.")
        return unet.requires_grad_(False)

    model = _base_class()(config, kinds[prediction], device=device, unet_model=on_meta)
    if not config.sampling_settings["zsnr"]:
        model.model_sampling.set_sigmas(diffusers_sigmas(scheduler_config))
    return model


def diffusers_sigmas(scheduler_config: dict[str, Any]) -> Tensor:
    """Noise levels (T,) float32 exactly as diffusers has them.

    Core computes the same schedule in float64, up to 1e-4 away where the noise is least.
    """
    from ...trainer.diffusion.noise import VariancePreserving

    alphas = VariancePreserving.from_config(scheduler_config).alphas_cumprod
    return ((1 - alphas) / alphas).sqrt()


def computation_dtype(dtype: torch.dtype) -> torch.dtype | None:
    from comfy import model_management

    return model_management.unet_manual_cast(dtype, model_management.get_torch_device())


@lru_cache(1)
def _config_class() -> type:
    from comfy.supported_models_base import BASE

    class NativeVideoConfig(BASE):
        """What ComfyUI's BaseModel reads of a model family."""

        unet_extra_config: dict[str, Any] = {}
        memory_usage_factor = 1.5

        def process_unet_state_dict_for_saving(self, state_dict):
            raise ValueError("A video model cannot be saved as a checkpoint; save its LoRA.")

    return NativeVideoConfig


@lru_cache(1)
def _base_class() -> type:
    from comfy.model_base import BaseModel

    class NativeVideoModel(BaseModel):
        """Core's BaseModel whose network is a diffusers UNet."""

        def get_dtype(self) -> torch.dtype:
            """What the weights are stored in; the UNet's own ``dtype`` is the computation's."""
            return self.model_config.unet_config["dtype"]

    return NativeVideoModel


def wrap_model(
    model: Any, info: VideoInfo, loader: tuple | None = None, disable_dynamic: bool = False
) -> Any:
    """The ModelPatcher (MODEL) of a filled BaseModel, on ComfyUI's devices: it reads the frames of
    its latents, reports patches that cannot act, and shows every frame while it samples.

    ``loader`` and ``disable_dynamic`` are those of `core.new_patcher`.
    """
    from .control import refuse_control_loras
    from .previews import add_previews

    attach_info(model, info)
    patcher = new_patcher(model, loader, disable_dynamic)
    wrap(patcher, "OUTER_SAMPLE", "mcm_videos", sample_videos)  # first, so that it is outermost
    wrap(patcher, "OUTER_SAMPLE", "mcm_patches", report_lost_patches)
    wrap(patcher, "OUTER_SAMPLE", "mcm_sound", check_clip)
    add_previews(patcher)
    refuse_control_loras(patcher)
    return patcher


def check_clip(executor: Any, *args: Any, **named: Any) -> Tensor:
    """Around ``CFGGuider.outer_sample``: raise ValueError with the cause if latents are NaN, which
    a VAE would decode to black frames without an error.
    """
    latents = executor(*args, **named)
    model = executor.class_obj.model_patcher.model
    check_latents(latents, model.diffusion_model, model.manual_cast_dtype)
    return latents


def choose_dtype(weight_dtype: str, weights: dict[str, Tensor]) -> torch.dtype:
    """The storage dtype: one of ``DTYPES``, or for "default" what ComfyUI picks on this machine."""
    from comfy import model_management

    if weight_dtype == "default":
        total = sum(value.numel() for value in weights.values())
        stored = next(iter(weights.values())).dtype
        return model_management.unet_dtype(model_params=total, weight_dtype=stored)
    if weight_dtype not in DTYPES:
        raise ValueError(
            f"`weight_dtype`={weight_dtype!r} is unknown; use default, {', '.join(DTYPES)}."
        )
    return DTYPES[weight_dtype]


def storage_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What weight ``value`` of a model in ``dtype`` is stored in.

    With fp8, biases and norms keep half precision (they are small and suffer most). Whole numbers
    stay what they are.
    """
    if not value.is_floating_point():
        return value.dtype
    return torch.float16 if dtype.itemsize == 1 and value.ndim <= 1 else dtype


def cast_weights(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """``weights`` as a model in ``dtype`` stores them."""
    return {name: value.to(storage_dtype(value, dtype)) for name, value in weights.items()}


def load_native_model(
    folder: Path,
    weight_dtype: str = "default",
    latent_format: Any = None,
    disable_dynamic: bool = False,
) -> Any:
    """MODEL (a ModelPatcher) of the diffusers text-to-video ``folder``.

    ``disable_dynamic`` asks for core's plain patcher where it would take the dynamic one. Raises
    ValueError naming the part that is missing, damaged or of another kind.
    """
    from diffusers import UNet3DConditionModel

    from .unet import NativeUNet3D

    config = read_json(folder / "unet" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    weights = read_weights(folder / "unet")
    dtype = choose_dtype(weight_dtype, weights)
    model = build_native_model(
        NativeUNet3D,
        init_options(UNet3DConditionModel, config),
        dtype=dtype,
        scheduler_config=scheduler,
        latent_format=latent_format,
    )
    check_fit(model.diffusion_model, weights, folder / "unet")
    model.diffusion_model.load_state_dict(cast_weights(weights, dtype), assign=True)
    info = read_info(folder, config, scheduler)
    log.info("%s (%s): licence of the weights: %s", info.name, info.family, info.licence)
    loader = load_native_model, (folder, weight_dtype, latent_format)
    return wrap_model(model, info, loader, disable_dynamic)


def read_info(folder: Path, config: dict[str, Any], scheduler: dict[str, Any]) -> VideoInfo:
    """The entries of ``folder``'s ``mcm.json``, completed by its family's constants."""
    from ...trainer.families import family_of

    family = family_of(folder)
    factor = _latent_factor(folder)
    sides = config.get("sample_size") or 32
    height, width = sides if isinstance(sides, list) else (sides, sides)
    about = read_about(
        folder, name=folder.name, frames=16, width=width * factor, height=height * factor, fps=8,
        licence=family.licence,
    )  # fmt: skip
    return VideoInfo.of(
        family,
        about,
        scheduler_config=scheduler,
        latent_factor=factor,
        weight_files=tuple(weight_files(folder / "unet")),
    )


def _latent_factor(folder: Path) -> int:
    """Pixels per latent, from the number of levels of the autoencoder."""
    config = read_json(folder / "vae" / "config.json")
    levels = config.get("block_out_channels") or config.get("decoder_block_out_channels") or [0] * 4
    return 2 ** (len(levels) - 1)
