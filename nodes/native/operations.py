"""Gives a diffusers network ComfyUI's layers, for casting, low-VRAM offload and LoRA patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

LEAVES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


def swap_operations(module: nn.Module, operations: Any) -> list[str]:
    """Swap the class of each leaf layer in ``module``, in place, to that of ``operations``.

    ``operations`` is what ComfyUI's BaseModel passes to the network it builds
    (``comfy.ops.disable_weight_init`` or a casting kind of it); names, shapes and tensors stay as
    they are. Returns the paths of the modules that own parameters or buffers and were left as they
    were. The list must be empty, because a partial load never moves modules that ComfyUI does not
    know.
    """
    left = []
    for path, layer in module.named_modules():
        if _swap_leaf(layer, operations) or _follow_input(layer):
            continue
        if any(True for _ in layer.parameters(recurse=False)) or any(
            True for _ in layer.buffers(recurse=False)
        ):
            left.append(path)
    return left


def _swap_leaf(layer: nn.Module, operations: Any) -> bool:
    """Diffusers' subclasses of a leaf compute what the leaf does: swapped too."""
    for kind in LEAVES:
        if isinstance(layer, kind):
            layer.__class__ = getattr(operations, kind.__name__)
            return True
    return False


def _follow_input(layer: nn.Module) -> bool:
    """AnimateDiff's positional table is a bare buffer, which partial loads never move."""
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    if isinstance(layer, SinusoidalPositionalEmbedding):
        layer.__class__ = _following_embedding()
        return True
    return False


def _following_embedding() -> type:
    """The positional embedding whose table goes to its input's device and dtype."""
    global _FOLLOWING
    if _FOLLOWING is None:
        from diffusers.models.embeddings import SinusoidalPositionalEmbedding

        class FollowingPositionalEmbedding(SinusoidalPositionalEmbedding):
            """Adds ``pe`` (1, frames, D) to ``x`` (N, F, D) wherever ``x`` lives."""

            def forward(self, x: Tensor) -> Tensor:
                return x + self.pe[:, : x.shape[1]].to(x)

        _FOLLOWING = FollowingPositionalEmbedding
    return _FOLLOWING


_FOLLOWING: type | None = None
