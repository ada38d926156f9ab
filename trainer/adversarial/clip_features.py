"""CLIP's vision model as a feature network, for whoever has one for ComfyUI already."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..models.clip_vision import read_clip_vision
from .features import Dinov2Features


class ClipVisionFeatures(Dinov2Features):
    """CLIP's vision model after each quarter of its layers, patch tokens only.

    As with DINOv2: frames of 224 x 224 pixels in area, raw hidden states.
    """

    name = "clip-vision"
    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def states(self, prepared: Tensor) -> tuple[Tensor, ...]:
        # CLIP knows square images only; the encoding of its places is stretched for others.
        return self.network(
            prepared, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states


def build_clip_vision(path: Path | None, dtype: torch.dtype) -> ClipVisionFeatures:
    """The network at ``path``, a folder or a file; raises ValueError without one."""
    if path is None:
        raise ValueError(
            "The feature network 'clip-vision' needs its path: a CLIP vision folder, or ComfyUI's "
            "file in models/clip_vision. Give the path itself as `adversarial.features`."
        )
    return ClipVisionFeatures(read_clip_vision(path), dtype)
