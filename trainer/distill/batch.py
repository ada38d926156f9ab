"""The CPU part of a step: everything that is read, decided or encoded before the device starts.

The result is on the device and needs no further copy, so the device part (`step`) never waits for
the host.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..adversarial.augment import AugmentDraws
from ..adversarial.frame_losses import LossMemory
from ..adversarial.frames import EndMaps, RealFrames
from ..adversarial.losses import R1_EVERY, mismatch_permutation
from ..config import TrainConfig
from ..data.prompts import PromptSet
from ..families import VideoModel
from ..motion.sources import MotionSource, Replay, TrajectoryLibrary
from .draws import StepDraws, generator_for
from .plan import FRESH, REPLAY, TRAJECTORY, TeacherPlan, timesteps_of
from .sources import Sources
from .student import ParameterEma, StepParts


@dataclass
class Session:
    """The parts of one run: the networks of a step, its data, and what a step changes.

    ``end_maps`` is None when content is not compared with the ends of stored trajectories, or in
    a part of the frames only,
    ``discriminator_optimizer`` when the adversarial weight is 0.
    """

    accelerator: Accelerator
    parts: StepParts
    sources: Sources
    prompts: PromptSet
    motions: MotionSource
    frames: RealFrames
    end_maps: EndMaps | None
    replay: Replay
    memory: LossMemory
    optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer | None
    ema: ParameterEma

    @property
    def config(self) -> TrainConfig:
        return self.parts.config

    @property
    def model(self) -> VideoModel:
        return self.parts.model

    @property
    def plan(self) -> TeacherPlan:
        return TeacherPlan.of_model(self.config, self.model)

    @property
    def library(self) -> TrajectoryLibrary | None:
        """The teacher's rollouts if the motion loss aims at their ends, else None."""
        found = self.motions if self.config.aims_at_ends else None
        return found if isinstance(found, TrajectoryLibrary) else None

    @property
    def starts(self) -> TrajectoryLibrary | None:
        """The rollouts that new predictions begin as: those whose ends are compared, or any where
        they do not begin with noise; else None.
        """
        if isinstance(self.motions, TrajectoryLibrary) and not self.model.noise.in_noise:
            return self.motions
        return self.library


@dataclass(frozen=True)
class StyleBatch:
    """What the discriminator's side needs, K frames per clip and N = B * K images.

    ``frames`` (B, K); ``text`` (N, D) and ``captions`` of the student's frames; ``pixels``
    (N, 3, H, W) of real frames with ``real_text`` (N, D), their ``wrong_text`` (N, D) and ``mask``
    (N,) where it counts; ``wanted`` maps of the frames that content is compared with, where they
    are known; ``r1_weight`` of this step; ``read`` (N, D) what a CLIP makes of the captions.
    ``place`` (2,) of the part of the student's frames that is decoded; None for whole frames.
    ``pixels`` are such a part.
    """

    frames: Tensor
    text: Tensor
    captions: list[str]
    pixels: Tensor
    real_text: Tensor
    wrong_text: Tensor | None
    mask: Tensor | None
    augment_fake: AugmentDraws
    augment_real: AugmentDraws
    wanted: list[Tensor] | None
    r1_weight: float
    place: Tensor | None
    read: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B clips on the device; ``rows`` (B,), prompt rows, and ``origins`` (B,),
    rows of the motion source, stay on the host.

    Points are at ``level`` (B,), one step of the trajectory from ``next_level`` (B,). Those at the
    places ``fresh`` (n,) begin with a new prediction from pure noise ``start`` (n, C, f, h, w), at
    the level ``most`` (1,);
    those at ``real`` (k,) lie on a stored trajectory, at ``real_latents`` (k, C, f, h, w), from
    which the teacher steps to ``real_next`` where that is stored too; the rest with ``earlier``
    (B, C, f, h, w), replayed predictions and zeros elsewhere. ``anchored`` (B,) is 1 where these
    pull. ``ends`` (B, C, f, h, w) are the clips that the teacher made of the noise each point goes
    back to; None where motion is compared with the student's own next point: then ``asked`` (m,)
    are the places whose next latents the teacher must compute.
    """

    rows: Tensor
    origins: Tensor
    level: Tensor
    next_level: Tensor
    most: Tensor
    guidance: Tensor
    noise: Tensor
    text: Tensor
    empty: Tensor
    earlier: Tensor
    anchored: Tensor
    fresh: Tensor | None
    start: Tensor | None
    real: Tensor | None
    real_latents: Tensor | None
    real_next: Tensor | None
    ends: Tensor | None
    asked: Tensor | None
    style: StyleBatch | None


def make_batch(session: Session, draws: StepDraws, step: int) -> Batch:
    """The batch that ``draws`` of step ``step`` stand for."""
    s, path, library = session, session.model.noise, session.library
    rows, origins, earlier = _rows(s, draws)
    levels = s.plan.levels
    level, below = levels[draws.place], levels[(draws.place - 1).clamp(min=0)]
    stored = draws.source == REPLAY
    near = timesteps_of(path, level) <= s.config.recipe.motion.self_anchor_max_timestep
    fresh, real = _places(draws.source == FRESH), _places(draws.source == TRAJECTORY)
    real_latents, real_next = _real(s, draws, real, level)
    known = draws.source == TRAJECTORY if real_next is not None else stored & False
    batch = Batch(
        rows=rows,
        origins=origins,
        level=level,
        next_level=torch.where(draws.place > 0, below, torch.full_like(below, path.lowest)),
        most=levels[-1:],
        guidance=draws.guidance,
        noise=draws.noise,
        text=s.model.encode_text(s.prompts.texts(rows.tolist())),
        empty=s.model.encode_text([s.model.negative]),
        earlier=earlier,
        anchored=(stored & near).float(),
        fresh=fresh,
        start=_start(s, draws, origins, fresh),
        real=real,
        real_latents=real_latents,
        real_next=real_next,
        ends=None if library is None else library.clean[origins].to(draws.noise),
        asked=_places(~known) if library is None else None,
        style=_style(s, draws, rows, origins, step),
    )
    return replace(to_device(batch, s.model.device), rows=rows, origins=origins)


def _places(mask: Tensor) -> Tensor | None:
    found = mask.nonzero()[:, 0]
    return found if len(found) else None


def _rows(s: Session, draws: StepDraws) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt rows (B,), rows of the motion source (B,), and the stored predictions of replayed
    points.
    """
    rows, origins, earlier = draws.prompt.clone(), draws.motion, torch.zeros_like(draws.noise)
    of_motion = draws.source == TRAJECTORY if s.starts is None else draws.source != REPLAY
    rows[of_motion] = s.motions.prompts[draws.motion[of_motion]]
    stored = draws.source == REPLAY
    if stored.any():
        origins = origins.clone()
        earlier[stored], rows[stored], origins[stored] = s.replay.take(draws.replay[stored])
    return rows, origins, earlier


def _start(s: Session, draws: StepDraws, origins: Tensor, fresh: Tensor | None) -> Tensor | None:
    """New predictions begin with drawn noise, or with what a rollout began with."""
    if fresh is None:
        return None
    start = draws.start[fresh]
    return start if s.starts is None else s.starts.noise[origins[fresh]].to(start)


def _real(
    s: Session, draws: StepDraws, real: Tensor | None, level: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if real is None:
        return None, None
    device = s.model.device
    return s.motions.points(
        draws.motion[real], draws.place[real], level[real].to(device), draws.noise[real].to(device)
    )


def _style(
    s: Session, draws: StepDraws, rows: Tensor, origins: Tensor, step: int
) -> StyleBatch | None:
    if s.parts.discriminator is None:
        return None
    options, per_clip = s.config.recipe.adversarial, s.config.data.frames_per_clip
    reader = s.parts.reader
    captions = [c for c in s.prompts.frames(rows.tolist()) for _ in range(per_clip)]
    judged = s.prompts.conditional
    text = s.model.pooled_text(captions if judged else [""] * len(captions))
    pixels, shown = s.frames.batch(len(captions), draws.image_seed)
    pixels, whole = part_of(pixels, s.parts, draws.real_place)
    real_text, wrong, mask = text, None, None
    if judged:
        shown = s.prompts.judged(shown)
        real_text = s.model.pooled_text(shown)
        if options.mismatched_captions:
            pairing = mismatch_permutation(shown, generator_for(draws.mismatch_seed, step))
            wrong = real_text[pairing.permutation.to(real_text.device)]
            mask = pairing.possible.float()
    return StyleBatch(
        frames=draws.frames,
        text=text,
        captions=captions,
        pixels=pixels,
        real_text=real_text,
        wrong_text=wrong,
        mask=mask,
        augment_fake=draws.augment_fake,
        augment_real=draws.augment_real,
        wanted=None if s.end_maps is None else s.end_maps(origins, draws.frames),
        r1_weight=options.r1_weight if step % R1_EVERY == 0 else 0.0,
        place=None if whole else draws.part_place,
        read=None if reader is None else reader.targets(captions),
    )


def part_of(pixels: Tensor, parts: StepParts, place: Tensor) -> tuple[Tensor, bool]:
    """The part (N, 3, h, w) at ``place`` (2,) of real frames ``pixels`` (N, 3, H, W) that is as
    large as what the step decodes of the student's, and whether that is all of them.
    """
    full = tuple(pixels.shape[2:])
    size = parts.decoder.part(*full)
    for axis, length in enumerate(size, start=2):
        spare = pixels.shape[axis] - length
        pixels = pixels.narrow(axis, int(place[axis - 2] * (spare + 1)), length)
    return pixels, size == full


def to_device(value: Any, device: torch.device | str) -> Any:
    """``value`` with every tensor in it, and in the records inside it, on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    moved = {f.name: to_device(getattr(value, f.name), device) for f in fields(value)}
    return replace(value, **moved)
