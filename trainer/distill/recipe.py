"""What the teacher's example clips are made from, and the keys that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig, with_overrides
from ..data.cache import ContentCache
from ..data.prompts import PromptSet
from ..families import VideoModel, load_model
from ..models.weights import file_hash, shapes_only, weight_files
from .draws import generator_for
from .plan import TeacherPlan

LIBRARY_VERSION = 3
UNET_KEYS = ("attention_head_dim", "num_attention_heads", "norm_num_groups", "norm_eps", "act_fn")
TEXT_KEYS = ("hidden_act", "num_attention_heads", "layer_norm_eps")
"""Config entries that the weights do not show; other entries vary with the library's version."""
ENDS_ALONE = {"trajectory.real_probability": 0.0, "motion.target": "endpoint"}
"""Settings of rollouts of which only the ends are kept."""


@dataclass(frozen=True)
class Clip:
    """The ``number``-th clip of one text as the teacher reads it; ``row`` is its prompt."""

    text: str
    number: int
    row: int

    def noise(self, shape: Sequence[int]) -> Tensor:
        """What it begins with, of latent ``shape`` (C, F, h, w), in fp32."""
        seed = hashlib.sha256(f"{self.number}:{self.text}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "little"))
        return torch.randn(tuple(shape), generator=generator)


def plan_clips(prompts: PromptSet, count: int) -> list[Clip]:
    """The first ``count`` clips of a fixed order in which every prompt comes once before any comes
    again; more clips begin with the same ones.
    """
    order = torch.randperm(len(prompts), generator=generator_for(0, 0, stream=1)).tolist()
    seen: Counter[str] = Counter()
    clips = []
    for place in range(count):
        row = order[place % len(order)]
        text = prompts.prompts[row].teacher
        clips.append(Clip(text, seen[text], row))
        seen[text] += 1
    return clips


@dataclass(frozen=True)
class Recipe:
    """All that clips depend on beside their text; ``shape`` is (C, F, h, w). ``lead`` is that of
    the states that trajectories begin with, where another model makes them; None for noise.
    """

    model: VideoModel
    shape: tuple[int, int, int, int]
    plan: TeacherPlan
    lead: Recipe | None = None

    @classmethod
    def of(cls, config: TrainConfig, model: VideoModel, shape: tuple[int, int, int, int]) -> Recipe:
        """The recipe of a run. Raises ModelError for a leading model that cannot be used."""
        lead = None
        if model.other is not None and not model.noise.in_noise:
            first = leading(config, model.other)
            ends = with_overrides(config, {**ENDS_ALONE, "videos": None})
            lead = cls(first, shape, TeacherPlan.of_model(ends, first))
        return cls(model, shape, TeacherPlan.of_model(config, model), lead)

    @cached_property
    def teacher(self) -> str:
        """Hash of UNet, text encoder and noise schedule. Latents do not depend on the
        autoencoder.
        """
        model = self.model
        said = {
            "unet": [model.base_hash, _chosen(model.network.config, UNET_KEYS)],
            "text": [
                model.text.fingerprint or _weights_hash(model.text.encoder),
                _chosen(model.text.config, TEXT_KEYS),
            ],
            "schedule": model.noise.config,
            "prediction": model.noise.prediction,
        }
        if model.negative:
            said["negative"] = model.negative
        text = json.dumps(said, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def key(self, clip: Clip, dtype: torch.dtype | None) -> str:
        """Key of ``clip`` made with a UNet in ``dtype``; None for clips that serve every type."""
        tokens = self.model.text.tokens(clip.text)
        parts = (self.teacher, str(tokens), clip.text, clip.number, str(self.shape))
        start = () if self.lead is None else (self.lead.key(clip, dtype),)
        said = (*parts, *self._sampling, str(dtype), *start)
        return ContentCache.key("clip", LIBRARY_VERSION, *said)

    @property
    def _sampling(self) -> tuple[str | float, ...]:
        """What keys say of the plan. The states that are kept are all from the first one on, in
        nearly every run; then its place alone tells them, as it always has.
        """
        plan, kept = self.plan, self.plan.kept
        left_out = plan.rollout.index(kept[0])
        usual = (plan.library_guidance, plan.places, plan.stride, left_out)
        return usual if kept == plan.rollout[left_out:] else (*usual, str(kept))


def _chosen(config: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in names}


def _weights_hash(network: torch.nn.Module) -> str:
    """sha256 of a network's weights, the same in whichever of the usual types they were read."""
    digest = hashlib.sha256()
    # transformers 5 dropped the prefix
    named = {k.removeprefix("text_model."): v for k, v in network.state_dict().items()}
    for name, value in sorted(named.items()):
        if value.is_floating_point():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            rounded = value.detach().cpu().to(torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def leading(config: TrainConfig, path: Path) -> VideoModel:
    """The model at ``path``, whose trajectories end where another's begin, as shapes with its hash,
    for prompts: with the companions of ``config``. Raises ModelError.
    """
    with shapes_only():
        model = load_model(str(path), torch.float32, **beside(config))
    model.base_hash = _hash_at(path, path.stat().st_mtime_ns)
    return model


def beside(config: TrainConfig) -> dict[str, Path | None]:
    """The companions of ``config`` that both models of a pair have."""
    return {**config.companions, "other_expert": None}


@lru_cache(maxsize=2)
def _hash_at(path: Path, changed: int) -> str:
    return file_hash(weight_files(path) if path.is_dir() else [path])
