"""AnimateDiff as a native MODEL: a loaded Stable Diffusion 1.5 plus a motion module.

The image model is not copied. Its weights, LoRAs applied upstream included, are renamed to the
paths of diffusers' `UNetMotionModel`, whose layers ComfyUI then casts, offloads and patches.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...trainer.families.animatediff import FAMILY, SCHEDULER_CONFIG
from ...trainer.models.motion_module import MotionModule, MotionModuleError
from ...trainer.models.sd15 import TEXT_WIDTH
from ...trainer.models.weights import check_fit
from .core import quantised_as
from .info import VideoInfo, video_info
from .model import build_native_model, wrap_model
from .notices import tell
from .patches import unsupported
from .prediction import PATCH, image_prediction, only_prediction

PREFIX = "diffusion_model."
SIZE = FAMILY.bases[0].size
"""Width and height in pixels and frames to offer for any motion module."""


def apply_motion_module(model: Any, module: MotionModule, disable_dynamic: bool = False) -> Any:
    """A new MODEL of clips from `model`, a MODEL of Stable Diffusion 1.5, and a motion module.

    Weights are shared if they are already on the offload device in the model's type; with dynamic
    VRAM a checkpoint keeps its file's type, and they are copied. `model` is not changed. Raises
    MotionModuleError, with nothing changed, if the two do not fit.
    """
    from .unet import NativeMotionUNet

    check_base(model, module)
    config = model.model.model_config.unet_config
    scheduler = {**SCHEDULER_CONFIG, "prediction_type": image_prediction(model)}
    native = build_native_model(
        NativeMotionUNet,
        unet_options(config, module),
        dtype=model.model.get_dtype(),
        scheduler_config=scheduler,
        latent_format=model.model.latent_format,
    )
    names = key_names(config)
    fill_weights(native.diffusion_model, model, module, names)
    info = motion_info(module, scheduler)
    out = wrap_model(native, info, _loader(model, module), disable_dynamic)
    out.load_device, out.offload_device = model.load_device, model.offload_device
    carry_over(model, out, names)
    return out


def _loader(model: Any, module: MotionModule) -> tuple | None:
    """``(function, arguments)`` that makes the same MODEL again, for core; None if the image
    model's loader is unknown.
    """
    again = getattr(model, "cached_patcher_init", None)
    return (_apply_again, (again, module)) if again else None


def _apply_again(again: tuple, module: MotionModule, disable_dynamic: bool = False) -> Any:
    load, arguments, *which = again
    options = {"disable_dynamic": True} if disable_dynamic else {}
    found = load(*arguments, **options)
    return apply_motion_module(found[which[0]] if which else found, module, disable_dynamic)


def check_base(model: Any, module: MotionModule) -> None:
    """Raise MotionModuleError unless `model` is an SD 1.5 of the motion module's widths."""
    base = model.model
    if hasattr(base, "mcm_info"):
        raise MotionModuleError(
            f"This MODEL is already a video model ('{video_info(model).name}'). Connect the MODEL "
            "of Load Checkpoint (Stable Diffusion 1.5), before any motion module."
        )
    config = getattr(base.model_config, "unet_config", {})
    context, inputs = config.get("context_dim"), config.get("in_channels")
    if "channel_mult" not in config or context != TEXT_WIDTH or inputs != 4:
        raise MotionModuleError(
            f"The MODEL is a {type(base.model_config).__name__} (text width {context}, "
            f"{inputs} input channels); motion modules are made for Stable Diffusion 1.5 (text "
            f"width {TEXT_WIDTH}, 4 channels). Load an SD 1.5 checkpoint that is not for "
            "inpainting."
        )
    if quantised_as(base.model_config):
        raise MotionModuleError(
            "The checkpoint's layers are quantised (GGUF, scaled fp8, nvfp4 or similar), which "
            "cannot be converted. Load it as fp32, fp16, bf16 or plain fp8."
        )
    widths = tuple(config["model_channels"] * factor for factor in config["channel_mult"])
    layers = tuple(config["num_res_blocks"])
    if (widths, layers) != (module.channels, module.layers):
        raise MotionModuleError(
            f"Motion module '{module.name}' is for channels {module.channels} with {module.layers} "
            f"layers, the checkpoint has {widths} with {layers}. Use a motion module for Stable "
            "Diffusion 1.5, not for XL."
        )


def key_names(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """Key of ComfyUI's UNet -> path in diffusers' UNet; some of either may not exist."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(copy.deepcopy(dict(unet_config)))
    return {theirs: ours for ours, theirs in names.items()}


def unet_options(unet_config: Mapping[str, Any], module: MotionModule) -> dict[str, Any]:
    """The arguments of `UNetMotionModel` for a UNet that ComfyUI detected."""
    layers = unet_config["num_res_blocks"]
    width, factors = unet_config["model_channels"], unet_config["channel_mult"]
    depths = list(unet_config["transformer_depth"])
    crossed = [any(depths[sum(layers[:i]) :][: layers[i]]) for i in range(len(layers))]
    return {
        "in_channels": unet_config["in_channels"],
        "out_channels": unet_config["out_channels"],
        "down_block_types": tuple(
            "CrossAttnDownBlockMotion" if text else "DownBlockMotion" for text in crossed
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlockMotion" if text else "UpBlockMotion" for text in reversed(crossed)
        ),
        "block_out_channels": tuple(width * factor for factor in factors),
        "layers_per_block": tuple(layers),
        "cross_attention_dim": unet_config["context_dim"],
        "num_attention_heads": unet_config["num_heads"],
        "use_linear_projection": unet_config["use_linear_in_transformer"],
        **module.unet_options(),
    }


def fill_weights(unet: Any, model: Any, module: MotionModule, names: Mapping[str, str]) -> None:
    """Give `unet`, on meta so far, the unpatched weights of `model` and those of the module, each
    in the type that `unet` has for it. Positional encodings stay in fp32.

    Raises MotionModuleError naming what does not fit.
    """
    device = model.offload_device
    state = {path: value.to(device) for path, value in module.weights.items()}
    for key, entry in model.get_key_patches(PREFIX).items():
        path = names.get(key.removeprefix(PREFIX))
        if path is not None:
            state[path] = entry[0][0].detach().to(device)
    try:
        check_fit(unet, state, Path(module.name))
    except ValueError as error:
        raise MotionModuleError(
            f"Motion module '{module.name}' and the checkpoint do not form a complete model. "
            f"{error}"
        ) from error
    types = {path: value.dtype for path, value in unet.named_parameters()}
    state = {path: value.to(types.get(path, value.dtype)) for path, value in state.items()}
    unet.load_state_dict(state, assign=True)


def carry_over(model: Any, out: Any, names: Mapping[str, str]) -> None:
    """LoRAs and options applied to `model` before the motion module act on `out` too.

    What does not work on a video model is named in one warning and left out.
    """
    lost = []
    for key, patches in model.patches.items():
        path = names.get(key.removeprefix(PREFIX))
        if path is None:
            lost.append(key)
        else:
            out.patches[PREFIX + path] = patches[:]
    out.model_options = copy.deepcopy(model.model_options)
    lost += unsupported(out.model_options["transformer_options"])
    for kind, wrappers in model.wrappers.items():
        for key, found in wrappers.items():
            out.wrappers.setdefault(kind, {}).setdefault(key, []).extend(found)
    for name, patch in model.object_patches.items():
        if name == "manual_cast_dtype":
            out.set_model_compute_dtype(patch)
        elif name != PATCH or not only_prediction(model):
            lost.append(name)
    lost += [*model.injections, *model.weight_wrapper_patches, *model.additional_models]
    if lost:
        tell(
            "These changes to the image model do not work on the video model: "
            f"{', '.join(sorted(set(map(str, lost))))}. Put model sampling nodes after AnimateDiff "
            "Motion Module."
        )


def motion_info(module: MotionModule, scheduler: dict[str, Any]) -> VideoInfo:
    """The video model's `VideoInfo`; lengths up to the module's last position."""
    width, height, frames = SIZE
    return VideoInfo(
        family=FAMILY.name,
        name=f"AnimateDiff {module.name}",
        frames=tuple(range(1, module.max_frames + 1)),
        default_frames=min(frames, module.max_frames),
        width=width,
        height=height,
        fps=8,
        licence=FAMILY.licence,
        scheduler_config=scheduler,
    )
