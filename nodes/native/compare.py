"""Image batches side by side, in the layout of the trainer's own comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from ...trainer.sheets import side_by_side


def compare(batches: list[tuple[str, Tensor]], title: str = "") -> Tensor:
    """IMAGE (F, H, W, 3) in 0..1 of labelled IMAGE batches (F_i, H_i, W_i, 3), playing in sync.

    The longest batch decides F; shorter ones repeat. Raises ValueError without a batch.
    """
    if not batches:
        raise ValueError("Side by Side has nothing to show; connect at least one image batch.")
    columns = [(label, _frames(images)) for label, images in batches]
    page = side_by_side(columns, title=title)
    return from_numpy(page.astype(np.float32) / 255)


def _frames(images: Any) -> np.ndarray:
    """Uint8 (F, H, W, 3); an alpha channel is dropped."""
    return (images[..., :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
