"""The graphics card of this machine."""

from __future__ import annotations

from ..files import GIB


def card_gib() -> float | None:
    """Memory of the first NVIDIA card in GiB; None without one that can be used."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GIB
