"""The trajectory library: example clips that the teacher makes once and that are stored clip by
clip.

A clip depends on the teacher, its text and how it is sampled, and on nothing else: not on the
style, the trigger word, the autoencoder or the other clips. Each has a key made from everything it
depends on. So a changed scheduler or text encoder makes a new clip, and a longer library or another
list of prompts reuses existing clips. A base model may include clips of its own
(``library.safetensors`` in its folder), which every machine uses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config import TrainConfig
from ..data.cache import ContentCache
from ..data.prompts import PromptSet, build_prompts
from ..families import VideoModel, load_model
from ..families.base import clips_at_once
from ..files import atomic_write
from ..lora.adapter import add_lora
from ..motion.sources import TrajectoryLibrary
from ..runs.guards import StopRequested
from .draws import generator_for
from .plan import TeacherPlan
from .student import Student, roll_out

logger = logging.getLogger(__name__)

LIBRARY_VERSION = 3
SHIPPED = "library.safetensors"
STAGE = "trajectory library"
UNET_KEYS = ("attention_head_dim", "num_attention_heads", "norm_num_groups", "norm_eps", "act_fn")
TEXT_KEYS = ("hidden_act", "num_attention_heads", "layer_norm_eps")
"""Config entries that the weights do not show; other entries vary with the library's version."""

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]


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
    """All that clips depend on beside their text; ``shape`` is (C, F, h, w)."""

    model: VideoModel
    shape: tuple[int, int, int, int]
    plan: TeacherPlan

    @classmethod
    def of(cls, config: TrainConfig, model: VideoModel, shape: tuple[int, int, int, int]) -> Recipe:
        """The recipe of a run."""
        return cls(model, shape, TeacherPlan.of_model(config, model))

    @property
    def clip_bytes(self) -> int:
        """Bytes of one stored clip: its end and the states that training reads, in fp16; its noise
        is drawn again.
        """
        return len(self.plan.kept) * math.prod(self.shape) * 2

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
        return ContentCache.key("clip", LIBRARY_VERSION, *parts, *self._sampling, str(dtype))

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


def fetch_library(
    config: TrainConfig,
    student: Student,
    prompts: PromptSet,
    shape: tuple[int, int, int, int],
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
) -> TrajectoryLibrary:
    """The teacher's rollouts for this model, prompt set and guidance.

    Clips in the model's folder or the cache are reused; the rest is made now and stored, each
    process its share. ``progress`` may raise StopRequested; finished clips are kept.
    """
    recipe = Recipe.of(config, student.model, shape)
    clips = plan_clips(prompts, config.data.library_clips)
    store = _Store(recipe, student, ContentCache(config.data.cache))
    found = store.read(clips)
    if len(found) == len(clips):
        log(f"All {len(clips)} example clips ({STAGE}) were made earlier.")
    else:
        made = len(recipe.plan.rollout)
        log(
            f"The base model makes {len(clips) - len(found)} of {len(clips)} example clips in "
            f"{made} sampling steps each. They are made once for all styles, and each is saved at "
            "once."
        )
        found |= _make_shares(store, clips, found, accelerator, progress)
    states = torch.stack([found[place] for place in range(len(clips))])
    rows = torch.tensor([clip.row for clip in clips])
    kept = recipe.plan.kept
    return TrajectoryLibrary(states, rows, kept, whole=kept == recipe.plan.rollout)


def _make_shares(
    store: _Store,
    clips: list[Clip],
    found: dict[int, Tensor],
    accelerator: Accelerator,
    progress: Progress,
) -> dict[int, Tensor]:
    """The missing clips by their place, this process's own share made and the others' read."""
    rank, count = accelerator.process_index, accelerator.num_processes
    made: dict[int, Tensor] = {}
    stopped = False
    try:
        made = store.make(clips, found, progress, rank, count)
    except StopRequested:
        stopped = True
    if count > 1:  # all processes wait here, also those asked to stop
        flag = torch.tensor(float(stopped), device=accelerator.device)
        stopped = bool(accelerator.reduce(flag, reduction="sum") > 0)
    if stopped:
        raise StopRequested(f"Stopped in the {STAGE}; finished clips are kept for the next start.")
    if count > 1:
        made |= store.read(clips, [p for p in range(len(clips)) if p not in found | made])
        made |= store.make(clips, found | made, progress)  # of a machine with another cache
    return made


@dataclass(frozen=True)
class _Store:
    """Where clips of one recipe come from: the model's folder, the cache, or the teacher."""

    recipe: Recipe
    student: Student
    cache: ContentCache

    def read(self, clips: list[Clip], places: Sequence[int] | None = None) -> dict[int, Tensor]:
        """States (K, C, F, h, w) of those of ``clips`` that are there, by place."""
        shipped, found = read_shipped(self.recipe.model.path / SHIPPED), {}
        for place in range(len(clips)) if places is None else places:
            clip = clips[place]
            kept = shipped.get(self.recipe.key(clip, None)) if shipped else None
            if kept is None:
                kept = (self.cache.load(self._key(clip)) or {}).get("states")
            if kept is not None:  # the noise is not kept: it is drawn again
                found[place] = torch.cat([kept, clip.noise(self.recipe.shape).half()[None]])
        return found

    def make(
        self,
        clips: list[Clip],
        found: dict[int, Tensor],
        progress: Progress,
        rank: int = 0,
        ranks: int = 1,
    ) -> dict[int, Tensor]:
        """Roll out and keep those of ``clips`` that are not ``found``: of every ``ranks`` groups
        the ``rank``-th. Groups are the same whatever is found, so a clip is the same to the bit.
        """
        size = clips_at_once(self.recipe.shape)
        groups = [range(i, min(i + size, len(clips))) for i in range(0, len(clips), size)]
        mine = groups[rank::ranks]
        total = sum(len(group) for group in mine)
        done = sum(place in found for group in mine for place in group)
        made: dict[int, Tensor] = {}
        for group in mine:
            missing = [place for place in group if place not in found]
            if not missing:
                continue
            between = partial(progress, STAGE, done, total)
            states = self._roll([clips[place] for place in group], between)
            for place in missing:
                made[place] = states[place - group.start]
                self.cache.keep(self._key(clips[place]), {"states": made[place][:-1]})
            done += len(missing)
            progress(STAGE, done, total)
        return made

    def _roll(self, clips: list[Clip], between: Callable[[], None]) -> Tensor:
        recipe, plan = self.recipe, self.recipe.plan
        return roll_out(
            self.student,
            [clip.text for clip in clips],
            torch.stack([clip.noise(recipe.shape) for clip in clips]),
            guidance=plan.library_guidance,
            levels=plan.levels,
            visited=plan.rollout,
            kept=plan.kept,
            between=between,
        )

    def _key(self, clip: Clip) -> str:
        return self.recipe.key(clip, self.student.model.dtype)


def read_shipped(file: Path) -> dict[str, Tensor]:
    """States without the noise, by key, of the clips that a base model brings; none without."""
    if not file.is_file():
        return {}
    try:
        with safe_open(file, "pt") as opened:
            keys, states = json.loads(opened.metadata()["keys"]), opened.get_tensor("states")
        return dict(zip(keys, states, strict=True))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s); its clips will be made again", file, error)
        return {}


def ship_library(config: TrainConfig, file: Path) -> None:
    """Roll out the library of ``config``'s base model on the CPU, from its own ``prompts.txt``, and
    write it to ``file`` for all users of that model.
    """
    model = load_model(config.model)
    shape = model.latent_shape(model.frames, model.height, model.width)
    prompts = build_prompts(config.prompts, model.path / "prompts.txt", [])
    add_lora(model.network, 1, 1.0, 0)  # switched off for the teacher
    student, accelerator = Student(model), Accelerator(cpu=True)
    library = fetch_library(config, student, prompts, shape, accelerator, print, _say)
    clips = plan_clips(prompts, config.data.library_clips)
    write_shipped(file, Recipe.of(config, model, shape), clips, library.states)


def _say(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", end="\r", flush=True)


def write_shipped(file: Path, recipe: Recipe, clips: Sequence[Clip], library: Tensor) -> None:
    """Write ``library`` (N, K, C, F, h, w), the states of ``clips``, for all users of a model."""
    keys = [recipe.key(clip, None) for clip in clips]
    states = library[:, :-1].contiguous()
    atomic_write(file, save({"states": states}, metadata={"keys": json.dumps(keys)}))
