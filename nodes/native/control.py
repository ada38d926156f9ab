"""ControlNet and T2I-Adapter residuals of ComfyUI, for diffusers' `UNetMotionModel`.

ComfyUI's UNet pops one tensor a block: `input` (T2I-Adapter) after each input block, `middle` after
the middle one, `output` on each skip connection from the deepest up. Input block i of ComfyUI and
residual i of diffusers' down path are the same layer. All tensors are (rows, C, h, w) or a
broadcast of it, rows = frames as batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Layer
from .core import wrap

Residual = Tensor | None


@dataclass(frozen=True, eq=False)
class Residuals:
    """What to add: `inputs` after each down layer, `middle` after the middle block, `skips` on each
    skip connection; one entry a layer of the down path, from `conv_in` down.
    """

    inputs: tuple[Residual, ...]
    middle: Residual
    skips: tuple[Residual, ...]

    def unet_arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """The keyword arguments of `UNetMotionModel.forward` in `dtype`; a plain 0 adds nothing."""
        middle = self.middle
        return {
            "down_block_additional_residuals": tuple(
                0 if residual is None else residual.to(dtype) for residual in self.skips
            ),
            "mid_block_additional_residual": None if middle is None else middle.to(dtype),
        }


def read_control(control: Mapping[str, Sequence[Residual]], layers: int) -> Residuals:
    """ComfyUI's residuals in the order of the down path, which has `layers` layers.

    The lists of `control` are not emptied. Raises ValueError for more residuals than layers.
    """
    popped = {
        kind: list(reversed(control.get(kind) or ())) for kind in ("input", "middle", "output")
    }
    for kind, limit in (("input", layers), ("middle", 1), ("output", layers)):
        if any(residual is not None for residual in popped[kind][limit:]):
            raise ValueError(
                f"The ControlNet gives {len(popped[kind])} `{kind}` residuals, but this model "
                f"takes {limit}; use a ControlNet or T2I-Adapter for Stable Diffusion 1.5."
            )
    middle = popped["middle"][0] if popped["middle"] else None
    inputs, skips = _filled(popped["input"], layers), _filled(popped["output"], layers)
    return Residuals(inputs=inputs, middle=middle, skips=skips[::-1])


@contextmanager
def input_residuals(layers: Sequence[Layer], residuals: Sequence[Residual]) -> Iterator[None]:
    """While open, each layer's output gets its residual added (T2I-Adapter)."""
    hooks = [
        layer.exit.register_forward_hook(_adding(residual))
        for layer, residual in zip(layers, residuals, strict=True)
        if residual is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(residual: Tensor) -> Any:
    def add(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + residual.to(output)

    return add


def _filled(residuals: list[Residual], count: int) -> tuple[Residual, ...]:
    return tuple((residuals + [None] * count)[:count])


def check_rows(residuals: Residuals, rows: int) -> None:
    """Raise ValueError if a residual has neither one row nor one per frame."""
    found = (*residuals.inputs, residuals.middle, *residuals.skips)
    for residual in found:
        if residual is not None and residual.shape[0] not in (1, rows):
            raise ValueError(
                f"A ControlNet residual has {residual.shape[0]} rows, the batch {rows} frames; "
                "give the ControlNet one image, or one per frame of the clip."
            )


def refuse_control_loras(model: Any) -> None:
    """Make sampling with MODEL `model` (a ModelPatcher), or its clones, refuse Control-LoRAs."""
    wrap(model, "OUTER_SAMPLE", "mcm_control", _without_control_loras)


def _without_control_loras(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Around `CFGGuider.outer_sample`; raises ValueError before core copies the model's weights.

    A Control-LoRA fills its network with the image UNet's own weights by ComfyUI's names, which a
    clip model does not have.
    """
    from comfy.controlnet import ControlLora

    for conditions in executor.class_obj.conds.values():
        for condition in conditions:
            control = condition.get("control")
            while control is not None:
                if isinstance(control, ControlLora):
                    raise ValueError(
                        "A Control-LoRA uses the weights of an image UNet, so it does not work on "
                        "a video model; load the full ControlNet of the same kind instead."
                    )
                control = control.previous_controlnet
    return executor(*args, **kwargs)
