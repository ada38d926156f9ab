"""Gradient checkpointing that reaches every block, and compilation of the same blocks.

diffusers' `enable_gradient_checkpointing` does nothing on UNet3DConditionModel's down and up blocks
and leaves out the motion modules of UNetMotionModel (0.42). So the sub-blocks themselves are
wrapped: their activations are thrown away after the forward and computed again in the backward.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

COMPILED_SHAPES = 256
"""Widths, sizes, batches, with and without gradient and adapter: a UNet has dozens of variants of
one kind of block, and beyond dynamo's own limit of 8 it would quietly run them uncompiled."""


def blocks(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """The outermost sub-blocks of ``network`` that are of one of ``kinds``."""
    for child in network.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from blocks(child, kinds)


def enable_checkpointing(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """Wrap the sub-blocks of ``network`` that are of ``kinds`` and return how many; a second call
    wraps nothing twice.

    Raises ValueError when the model has none, which would mean that the option does nothing.
    """
    found = list(blocks(network, kinds))
    fresh = [block for block in found if not hasattr(block, "_kept_forward")]
    for block in fresh:
        block._kept_forward = block.forward  # type: ignore[assignment]
        block.forward = functools.partial(_forward, block)  # type: ignore[method-assign]
    if not found:
        raise ValueError(
            "`hardware.gradient_checkpointing` does not support the blocks of "
            f"{type(network).__name__}; turn it off."
        )
    return len(fresh)


def _forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    """Without gradients (teacher, target, samples) nothing is kept anyway."""
    if not torch.is_grad_enabled():
        return block._kept_forward(*args, **kwargs)
    return recompute(block._kept_forward, *args, **kwargs)


def recompute(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function`` with nothing kept for the backward but its arguments.

    Frozen networks run without dropout, so there is no random state to put back.
    """
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def compile_blocks(
    network: nn.Module, kinds: tuple[type[nn.Module], ...], cache: Path, backend: str = "inductor"
) -> int:
    """Compile the sub-blocks of ``network`` at their first use; returns how many.

    Blocks of one shape share what was compiled, and the folder ``cache`` keeps it for the next run.
    Call it before `enable_checkpointing`, which then recomputes the compiled block. Shapes are
    taken as fixed: a run has few of them.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    config: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(config, name):
            setattr(config, name, max(getattr(config, name), COMPILED_SHAPES))
            break
    found = list(blocks(network, kinds))
    for block in found:
        compiled = torch.compile(block.forward, backend=backend, dynamic=False)
        block.forward = compiled  # type: ignore[method-assign]
    return len(found)
