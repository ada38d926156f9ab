"""A Stable Diffusion 1.5 of few channels, by ComfyUI's own classes and in diffusers.

The layout is the full one (four levels, two layers a block, 768-wide text); widths are 32 and 64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sd15_files import CHANNELS, TEXT_WIDTH, original_motion

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
}
COMFY_UNET = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}


@dataclass(frozen=True)
class Tiny:
    """The image model and the motion module in diffusers, and what the reference clip model is."""

    unet2d: Any
    adapter: Any

    def reference(self, adapter: Any = None) -> Any:
        """A fresh diffusers UNetMotionModel of these weights."""
        from diffusers import UNetMotionModel

        unet = UNetMotionModel.from_unet2d(self.unet2d, adapter or self.adapter)
        return unet.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    from diffusers import MotionAdapter, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    # At 8 steps and CFG 7.5 an untrained network amplifies diffusers' own rounding to 1e-4. A tenth
    # of its output does not, and one more of CFG still changes a clip by 7e-3.
    unet.conv_out.weight.data.mul_(0.1)
    adapter = MotionAdapter(block_out_channels=CHANNELS)
    return Tiny(unet.eval().requires_grad_(False), adapter.eval().requires_grad_(False))


@pytest.fixture
def adapter_without_mid() -> Any:
    """The layout of v1 and v3: no motion module in the middle block; v1 knows 24 frames."""
    from diffusers import MotionAdapter

    torch.manual_seed(1)
    adapter = MotionAdapter(
        block_out_channels=CHANNELS, use_motion_mid_block=False, motion_max_seq_length=24
    )
    return adapter.eval().requires_grad_(False)


@pytest.fixture
def sd15(comfy: Any, tiny: Tiny) -> Any:
    """A fresh ComfyUI MODEL of the tiny image model, by ComfyUI's own detection and loading."""
    return load_sd15(tiny.unet2d.state_dict())


@pytest.fixture
def mcm(comfy: Any) -> SimpleNamespace:
    """The pack's modules under test."""
    names = ("animatediff", "info", "motion_files", "unet")
    pack = comfy.__name__
    modules = {name: import_module(f"{pack}.nodes.native.{name}") for name in names}
    modules["motion_module"] = import_module(f"{pack}.trainer.models.motion_module")
    return SimpleNamespace(**modules, node=import_module(f"{pack}.nodes.animatediff"))


@pytest.fixture
def motion(mcm: Any, tiny: Tiny) -> Any:
    """The tiny motion module, as read from a diffusers file."""
    return mcm.motion_module.motion_module(tiny.adapter.state_dict(), "tiny")


@pytest.fixture
def clip_model(mcm: Any, sd15: Any, motion: Any) -> Any:
    """The MODEL under test: tiny SD 1.5 with the tiny motion module."""
    return mcm.animatediff.apply_motion_module(sd15, motion)


@pytest.fixture
def load(comfy: Any) -> Any:
    """`load(state_dict of a UNet2DConditionModel, dtype) -> MODEL`."""
    return load_sd15


@pytest.fixture
def original_keys() -> Any:
    """`original_keys(adapter, prefix) -> state dict` in the layout of the authors' files."""
    return original_motion


def to_comfy(state: dict) -> dict:
    """Diffusers' SD 1.5 keys to the keys of original checkpoints."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(copy.deepcopy(COMFY_UNET))
    return {names[key]: value.clone() for key, value in state.items()}


def load_sd15(state: dict, dtype: torch.dtype = torch.float32, manual_cast: Any = None) -> Any:
    """A ModelPatcher from diffusers weights, through the same calls as ComfyUI's loader.

    The detection's last step, the table of known widths, is the only one left out.
    """
    import comfy.model_detection
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    state = to_comfy(state)
    config = comfy.supported_models.SD15(comfy.model_detection.detect_unet_config(state, ""))
    config.set_inference_dtype(dtype, manual_cast)
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
