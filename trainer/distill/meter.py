"""Measures the memory of a computation's tensors by the lifetimes of their storages.

Works on any device, on "meta" too, where tensors have shapes and no contents: a full-size step is
measured in seconds, even on a machine without that much memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""Block size in bytes that PyTorch's CUDA allocator rounds up to."""


class MemoryMeter(TorchDispatchMode):
    """Inside, every new storage on ``device`` counts until the last tensor on it is gone.

    ``now`` and ``peak`` are bytes beyond what was there before. Memory inside an operation (a
    convolution's workspace) is not seen.
    """

    def __init__(self, device: torch.device | str):
        super().__init__()
        self.device = torch.device(device)
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        known = {x.untyped_storage()._cdata for x in _tensors((args, kwargs), self.device)}
        out = func(*args, **kwargs)
        for tensor in _tensors(out, self.device):
            if tensor.untyped_storage()._cdata not in known:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, rounded(storage.nbytes())
        if key in self._live:
            return

        def gone(_: Any) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(values: Any, device: torch.device) -> Iterable[Tensor]:
    leaves = tree_leaves(values)
    return (x for x in leaves if isinstance(x, Tensor) and x.device.type == device.type)


def rounded(size: int) -> int:
    """``size`` bytes as the allocator gives them out."""
    return -(-size // BLOCK) * BLOCK


def storage_bytes(tensors: Iterable[Tensor], device: torch.device | str) -> int:
    """Bytes of the storages of ``tensors`` that are on ``device``, each counted once."""
    kind = torch.device(device).type
    storages = [t.untyped_storage() for t in tensors if t.device.type == kind]
    return sum({s._cdata: rounded(s.nbytes()) for s in storages}.values())


def module_bytes(module: nn.Module | None, device: torch.device | str) -> int:
    """Bytes of parameters and buffers of ``module`` on ``device``."""
    if module is None:
        return 0
    return storage_bytes([*module.parameters(), *module.buffers()], device)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention on "meta" keeps what the fused kernels of cards keep: queries, keys,
    values, the result and one number per row.

    On "meta" PyTorch uses the plain formula with the full attention matrix, which cards never
    allocate.
    """
    plain = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.device.type == "meta":
            return _AttentionShapes.apply(query, key, value)
        return plain(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


class _AttentionShapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
