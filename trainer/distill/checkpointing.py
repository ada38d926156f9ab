"""Gradient checkpointing that reaches the 3-D blocks.

diffusers' `enable_gradient_checkpointing` does nothing on UNet3DConditionModel's blocks (0.42), so
every sub-block is wrapped here: its activations are thrown away after the forward and computed
again in the backward.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn
from torch.utils.checkpoint import checkpoint

WRAPPED = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)


def enable_checkpointing(unet: nn.Module) -> int:
    """Wrap the outermost sub-blocks of ``unet`` and return how many; calling it twice wraps nothing
    twice.

    Raises ValueError when the model has none, which would mean that the option does nothing.
    """
    wrapped = 0
    for module in unet.modules():
        if isinstance(module, WRAPPED) and not hasattr(module, "_uncheckpointed"):
            module._uncheckpointed = module.forward  # type: ignore[assignment]
            module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]
            wrapped += 1
    if not wrapped and not any(hasattr(m, "_uncheckpointed") for m in unet.modules()):
        raise ValueError(
            "`hardware.gradient_checkpointing` finds no block it knows in "
            f"{type(unet).__name__}; turn it off."
        )
    return wrapped


def _forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Without gradients (teacher, target, samples) nothing is kept anyway."""
    if not torch.is_grad_enabled():
        return module._uncheckpointed(*args, **kwargs)
    return checkpoint(module._uncheckpointed, *args, use_reentrant=False, **kwargs)
