"""The caption loss of real models: a CLIP score, differentiable to the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.clip_pair import find_clip, read_clip
from .features import FeatureNetwork

SCALE = 2.5
"""Of the cosine in a CLIP score (Hessel et al. 2021, arXiv 2104.08718, eq. 1)."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
OFF = (
    "The caption loss is off because no CLIP model was found. Without it, a style can override "
    "objects and colours of the prompt. Set `adversarial.clip` to the folder of a CLIP model "
    "(openai/clip-vit-base-patch32, 600 MB, MIT), or run `hf download "
    "openai/clip-vit-base-patch32` once."
)


class ClipReader(nn.Module):
    """Measures how well frames show what their captions say.

    The image encoder moves with the module. The text encoder stays in main memory and encodes each
    caption once.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, tokenizer: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vision, self.projection = clip.vision_model, clip.visual_projection
        self.side = int(clip.config.vision_config.image_size)
        self._text = (clip.text_model, clip.text_projection, tokenizer)  # in a tuple: it stays
        self._longest = int(clip.config.text_config.max_position_embeddings)
        self._known: dict[str, Tensor] = {}
        for key, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(key, torch.tensor(value)[:, None, None], persistent=False)
        self.vision.to(dtype)
        self.projection.to(dtype)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def targets(self, captions: Sequence[str]) -> Tensor:
        """Directions (N, D) of ``captions`` in CLIP's space, fp32 on the CPU."""
        model, projection, tokenizer = self._text
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                ids = tokenizer(
                    [caption], truncation=True, max_length=self._longest, return_tensors="pt"
                ).input_ids
                found = projection(model(input_ids=ids).pooler_output)
                self._known[caption] = functional.normalize(found.float(), dim=-1)[0]
        return torch.stack([self._known[caption] for caption in captions])

    def forward(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """1 - CLIP score (N,) of frames (N, 3, H, W) in [-1, 1] with ``targets`` (N, D), on one
        device; lower is better. Frames are resized to CLIP's square without cropping.
        """
        square = functional.interpolate(
            pixels.float() * 0.5 + 0.5, (self.side, self.side), mode="bilinear",
            align_corners=False, antialias=True,
        )  # fmt: skip
        prepared = ((square - self.mean) / self.std).to(self.projection.weight.dtype)
        seen = self.projection(self.vision(pixel_values=prepared).pooler_output)
        return 1 - SCALE * functional.cosine_similarity(seen.float(), targets.float(), dim=-1)


def build_reader(
    setting: str, features: FeatureNetwork, dtype: torch.dtype = torch.float32
) -> ClipReader | None:
    """The CLIP that `adversarial.clip` names, on the CPU; None where ``features`` read captions
    themselves, or if there is no CLIP. Raises ModelError.
    """
    path: Path | None = None if features.reads else find_clip(setting)
    return None if path is None else ClipReader(*read_clip(path), dtype)
