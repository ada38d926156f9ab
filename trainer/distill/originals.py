"""The base model's clips that previews show beside the student's: each is made once and kept.

A base model may include some (``originals.safetensors`` in its folder), so that the first preview
of a run with these prompts need not wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..data.cache import ContentCache
from ..evaluate.generate import generate_clips
from ..files import atomic_write
from ..models.sound import check_latents
from .library import read_shipped
from .recipe import Recipe
from .starts import preview_clips

SHIPPED = "originals.safetensors"
ORIGINALS_VERSION = 1


@dataclass(frozen=True)
class Originals:
    """Clips of ``prompts`` with the seeds ``seed``, ``seed`` + 1, ... in ``steps`` guided steps of
    the base model of ``recipe``; ``size`` is frames, height and width in pixels.
    """

    recipe: Recipe
    prompts: Sequence[str]
    seed: int
    steps: int
    size: tuple[int, int, int]

    def fetch(
        self,
        cache: ContentCache,
        starts: Tensor | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Latents (N, C, f, h, w) in fp16 on the CPU, from the model's folder, ``cache`` or the
        model itself; ``starts`` and ``between`` as in `generate_clips`.
        """
        shipped = read_shipped(self.recipe.model.path / SHIPPED)
        keys = self.keys(self.recipe.model.dtype)
        found = [
            shipped[free] if free in shipped else (cache.load(key) or {}).get("states")
            for free, key in zip(self.keys(None), keys, strict=True)
        ]
        clips = [clip for clip in found if clip is not None]
        if len(clips) < len(found):
            clips = list(self.make(starts, between))
            for key, clip in zip(keys, clips, strict=True):
                cache.keep(key, {"states": clip})
        return torch.stack(clips)

    def make(
        self, starts: Tensor | None = None, between: Callable[[], None] = lambda: None
    ) -> Tensor:
        """What `fetch` gives, made now. Raises `BrokenOutputError` for NaN."""
        clips = generate_clips(
            self.recipe.model, self.prompts, sampler="ddim", steps=self.steps, seed=self.seed,
            lora=False, size=self.size, starts=starts, between=between, states=True,
            guidance_scale=self.recipe.plan.guidance_scale,
        )  # fmt: skip
        check_latents(clips, self.recipe.model.network)
        return clips.half().cpu()

    def keys(self, dtype: torch.dtype | None) -> list[str]:
        """Of each clip; dtype None for one that serves every type, as in `Recipe.key`."""
        recipe, steps, guidance = self.recipe, self.steps, self.recipe.plan.guidance_scale
        keys = []
        for place, clip in enumerate(preview_clips(self.prompts, self.seed)):
            tokens = str(recipe.model.text.tokens(clip.text))
            begun = "" if recipe.lead is None else recipe.lead.key(clip, dtype)
            said = (recipe.teacher, clip.text, tokens, self.seed + place, str(recipe.shape))
            told = (steps, guidance, begun, str(dtype))
            keys.append(ContentCache.key("original", ORIGINALS_VERSION, *said, *told))
        return keys


def ship(sets: Sequence[Originals], file: Path) -> None:
    """Make the clips of all ``sets`` and write them to ``file`` for all users of a model."""
    keys = [key for each in sets for key in each.keys(None)]
    states = torch.cat([each.make() for each in sets])
    atomic_write(file, save({"states": states}, metadata={"keys": json.dumps(keys)}))
