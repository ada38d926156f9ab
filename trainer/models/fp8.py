"""Networks whose weights stay in fp8, one byte a number, as some files store them.

Two kinds of files exist. Plain ones hold e4m3 numbers that are the weights themselves. Scaled ones
hold a factor beside each: ``scale_weight`` with a marker ``scaled_fp8``, or ``weight_scale`` with a
``comfy_quant`` of its own (ComfyUI, `comfy/utils.py: convert_old_quants`). Both are computed in the
type of the input, from one layer at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import ModelError, empty_network, fill

KINDS = (torch.float8_e4m3fn, torch.float8_e5m2)
FORMATS = ("float8_e4m3fn", "float8_e5m2")
SCALES = (".scale_weight", ".weight_scale")
OF_INPUTS = (".scale_input", ".input_scale")
"""Factors for kernels that round the input to fp8 too; here it keeps its own type."""
MARKER, QUANTISED, SECOND_SCALE = "scaled_fp8", ".comfy_quant", ".weight_scale_2"


class Fp8Linear(nn.Linear):
    """A frozen Linear that keeps its weight in fp8, with a factor for all of it or for each row.

    ``weight`` holds the bytes as int8: moving the network to another floating type then leaves them
    alone. Gradients reach the input; for them the weight is made again, not kept.
    """

    def __init__(self, plain: nn.Linear, kind: torch.dtype, scale: Tensor):
        super().__init__(
            plain.in_features, plain.out_features, plain.bias is not None, device="meta"
        )
        shape = (self.out_features, self.in_features)
        self.weight = nn.Parameter(
            torch.empty(shape, dtype=torch.int8, device="meta"), requires_grad=False
        )
        self.kind = kind
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        out = _Multiplied.apply(x, self.weight, self.scale, self.kind)
        return out if self.bias is None else out + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        super()._apply(fn, recurse)
        self.scale = self.scale.to(fn(self.scale.new_empty(0)).device)  # a factor keeps fp32
        return self


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.kind = kind
        return F.linear(x, widened(weight.view(kind), scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ widened(weight.view(ctx.kind), scale, gradient.dtype), None, None, None


def widened(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``weight`` (out, in) in fp8 times ``scale``, () or (out, 1) in fp32, as ``dtype``."""
    wide = weight.to(dtype)
    if scale is None:
        return wide
    return wide.mul_(scale if scale.ndim == 0 else scale.to(dtype))


def build_fp8_network(
    network: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype = torch.float32,
    exact: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """As `build_network`, for weights of which some may be in fp8: Linear layers keep them so, all
    others are widened. ``exact`` takes the names of what is in fp32 whatever ``dtype`` is.

    Raises ModelError when the weights are not exactly the network's or are stored in a smaller form
    that cannot be read.
    """
    plain, scales = unpacked(weights, source)
    built = empty_network(network, plain, source)
    layers = dict(built.named_modules())
    for name, value in plain.items():
        if value.dtype not in KINDS:
            continue
        path = name.removesuffix(".weight")
        layer, scale = layers.get(path), scales.get(path)
        if isinstance(layer, nn.Linear) and not exact(name):
            scale = torch.ones(()) if scale is None else scale
            _put(built, path, Fp8Linear(layer, value.dtype, scale))
            plain[name] = value.view(torch.int8)
        else:
            plain[name] = widened(value, scale, torch.float32 if exact(name) else dtype)
    fill(built, plain, dtype, exact)
    return built


def unpacked(
    weights: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights themselves, and the factors of layers by the layer's path, () or (out, 1).

    Raises ModelError for a form that is not fp8, and for a factor that does not fit its weight.
    """
    plain, scales = {}, {}
    for name, value in weights.items():
        if name.endswith(QUANTISED):
            _check_format(value, source)
        elif name.endswith(SECOND_SCALE):
            raise _unreadable("nvfp4", source)
        elif name.endswith(SCALES):
            path = name[: name.rindex(".")]
            scales[path] = _factor(path, value, weights, source)
        elif name != MARKER and not name.endswith(OF_INPUTS):
            plain[name] = value
    return plain, scales


def _factor(path: str, scale: Tensor, weights: Mapping[str, Tensor], source: Path) -> Tensor:
    weight = weights.get(f"{path}.weight")
    if weight is None:
        raise ModelError(
            f"'{source}' has a factor for `{path}`, but not its weight: the file is not whole. "
            "Download it again."
        )
    if weight.dtype not in KINDS:
        kind = str(weight.dtype).removeprefix("torch.")
        raise ModelError(
            f"'{source}' has a factor for `{path}`, but its weight is {kind} instead of fp8. Use "
            "an fp16, bf16 or fp8 (e4m3) file of the same model."
        )
    if scale.numel() == 1:
        return scale.float().reshape(())
    if scale.numel() != weight.shape[0]:
        raise ModelError(
            f"'{source}' has factors of shape {tuple(scale.shape)} for `{path}` "
            f"{tuple(weight.shape)}; one for all or one a row can be read. Use an fp16 or bf16 "
            "file of the same model."
        )
    return scale.float().reshape(-1, 1)


def _check_format(value: Tensor, source: Path) -> None:
    try:
        told = json.loads(bytes(value.tolist()).decode("utf-8"))
        form = str(told.get("format", ""))
    except (ValueError, AttributeError) as error:
        raise ModelError(f"'{source}' is damaged: {error}. Download it again.") from error
    if form not in FORMATS:
        raise _unreadable(form, source)


def _unreadable(form: str, source: Path) -> ModelError:
    return ModelError(
        f"'{source}' is stored as {form or 'an unknown form'}, which cannot be read. Use an fp16, "
        "bf16 or fp8 (e4m3) file of the same model."
    )


def _put(network: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layer)
