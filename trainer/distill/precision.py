"""Precision of each part: frozen weights in half precision, trained ones in fp32.

There is no autocast. It would turn every normalisation of the UNet to fp32 and keep those copies
for the gradient, and it would round the UNet's last convolution, which stays fp32 on purpose.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

GRADIENT_PEAK = 2.0**-4
"""Largest gradient at the prediction that is sent through an fp16 UNet. fp16 ends at 2^16 and loses
bits below 2^-14; a mean over a clip leaves gradients of 1e-6."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def base_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the frozen base model for a setting; "auto" is bf16 on cards that have it."""
    if precision == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable else torch.float32
    return _DTYPES[precision]


def decoder_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the decoder in training steps; "auto" is bf16 where the device computes in it."""
    if precision == "auto":
        on_card = device.type == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if on_card or on_cpu else torch.float32
    return _DTYPES[precision]


def compute_lora_in_input_dtype(unet: nn.Module) -> int:
    """Let LoRA layers cast their small fp32 weights to the input's type; returns their number.

    PEFT casts the input to the weights' type instead: fp32 copies of every activation, kept for the
    gradient, and arithmetic at a sixteenth of a card's speed. Gradients still arrive in fp32.
    """
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
        for part in (*layer.lora_A.values(), *layer.lora_B.values()):
            part.forward = functools.partial(_cast_weight, part)
    return len(layers)


def _cast_weight(part: Any, x: Tensor) -> Tensor:
    """Forward of a bias-free Linear or Conv2d in the type of ``x``."""
    weight = part.weight.to(x.dtype)
    if isinstance(part, nn.Conv2d):
        return part._conv_forward(x, weight, None)
    return F.linear(x, weight)


def order_channels_last(network: nn.Module) -> None:
    """Store the weights of 2-D convolutions with their channels last, in place.

    `Module.to(memory_format=...)` stops at the first Conv3d, whose weights have five axes.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def gradient_scale(gradient: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Power of two, 0-d, that brings ``gradient`` into fp16's range; None where none is needed.

    Taken from the gradient itself, so it needs no search over steps and no wait for the host.
    Powers of two change no bits.
    """
    if dtype != torch.float16:
        return None
    peak = gradient.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.exp2(torch.floor(torch.log2(GRADIENT_PEAK / peak)).clamp(-24, 40))
