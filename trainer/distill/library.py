"""The trajectory library: example clips that the teacher makes once and that are stored clip by
clip.

A clip depends on the teacher, its text and how it is sampled, and on nothing else: not on the
style, the trigger word, the autoencoder or the other clips. Each has a key made from everything it
depends on. So a changed scheduler or text encoder makes a new clip, and a longer library or another
list of prompts reuses existing clips. A base model may include clips of its own
(``library.safetensors`` in its folder), which every machine uses.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config import TrainConfig
from ..data.cache import ContentCache
from ..data.prompts import PromptSet, build_prompts
from ..families import load_model
from ..families.base import clips_at_once
from ..files import atomic_write
from ..lora.adapter import add_lora
from ..motion.sources import TrajectoryLibrary
from ..runs.guards import StopRequested
from .recipe import Clip, Recipe, plan_clips
from .student import Student, roll_out

logger = logging.getLogger(__name__)

SHIPPED = "library.safetensors"
STAGE = "trajectory library"

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]


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
    store = Store(recipe, student, ContentCache(config.data.cache))
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
        found |= make_shares(store, clips, found, accelerator, progress)
    states = torch.stack([found[place] for place in range(len(clips))])
    rows = torch.tensor([clip.row for clip in clips])
    kept = recipe.plan.kept
    return TrajectoryLibrary(states, rows, kept, whole=kept == recipe.plan.rollout)


def make_shares(
    store: Store,
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
class Store:
    """Where clips of one recipe come from: the model's folder, the cache, or the teacher. ``stage``
    is what their making is called.
    """

    recipe: Recipe
    student: Student
    cache: ContentCache
    stage: str = STAGE

    def read(self, clips: list[Clip], places: Sequence[int] | None = None) -> dict[int, Tensor]:
        """States (K, C, F, h, w) of those of ``clips`` that are there, by place."""
        shipped, found = read_shipped(self.recipe.model.path / SHIPPED), {}
        for place in range(len(clips)) if places is None else places:
            clip = clips[place]
            kept = shipped.get(self.recipe.key(clip, None)) if shipped else None
            if kept is None:
                kept = (self.cache.load(self._key(clip)) or {}).get("states")
            if kept is not None:  # the start is not kept with it
                found[place] = torch.cat([kept, self.start(clip).half()[None]])
        return found

    def start(self, clip: Clip) -> Tensor:
        """What the trajectory of ``clip`` begins with (C, F, h, w): noise, drawn again, or the end
        of the leading model's, which must be in the cache (`starts.make_starts`).
        """
        lead = self.recipe.lead
        if lead is None:
            return clip.noise(self.recipe.shape)
        found = self.cache.load(lead.key(clip, self.student.model.dtype))
        if found is None:
            raise ValueError(
                f"The beginning of an example clip is not in the cache '{self.cache.root}' any "
                "more; start the run again, which makes it again."
            )
        return found["states"][0].float()

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
            between = partial(progress, self.stage, done, total)
            states = self._roll([clips[place] for place in group], between)
            for place in missing:
                made[place] = states[place - group.start]
                self.cache.keep(self._key(clips[place]), {"states": made[place][:-1]})
            done += len(missing)
            progress(self.stage, done, total)
        return made

    def _roll(self, clips: list[Clip], between: Callable[[], None]) -> Tensor:
        plan = self.recipe.plan
        return roll_out(
            self.student,
            [clip.text for clip in clips],
            torch.stack([self.start(clip) for clip in clips]),
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
