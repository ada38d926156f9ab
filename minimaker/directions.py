"""The teacher's second stage: learning words for directions from pure noise.

At the last timestep a noised clip still holds a signal (alpha^2 = .0047 over 2048 values), enough
to read where things are and where they go. So the first stage learns directions from the clip and
never from the caption: its text encoder ends with the same states for "left" and "right". Sampling
starts from pure noise, where only the caption could tell, and directions come out at random. (The
flaw is that of Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed";
here the schedule stays and the training changes.)

Four changes fix it: half of the samples at high noise lose a random part of their signal while the
goal stays the whole clip; near the last timestep half lose all of it, and their goal is what the
loss converges to there anyway, the mean clip of their caption (measured from the data, so that no
single clip's variance hides what left and right differ in); the words of direction start apart; a
caption loss keeps them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.mini.words import COLOURS, MOTIONS, SHAPES, parse_caption

from .stage import half_precision, run_stage
from .teacher import SCHEDULER, ClipStore, float_output, noise_weight
from .text import WIDTH, tokenize
from .world import FRAMES, REVERSED

HIGH_NOISE, PURE_NOISE = 700, 900
WEAKENED = 0.5
WORDS = ("left", "right", "up", "down", "growing", "shrinking")
CAPTION_WEIGHT = 0.02
WEIGHT_CAP = 100.0


def separate_words(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Move each direction's embedding by a random vector as long as a token's own."""
    weight = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        for word in WORDS:
            weight[tokenizer(word).input_ids[1]] += torch.randn(WIDTH) * weight.std()


@dataclass(frozen=True)
class Course:
    """One round of training: ``low`` and ``middle`` are the shares of samples with a timestep below
    `HIGH_NOISE`, and from there to `PURE_NOISE`; the rest lies above.
    """

    name: str
    lr: float
    low: float
    middle: float


BATCH, SEED = 16, 7
DIRECTIONS = Course("directions", lr=1.5e-3, low=0.4, middle=0.2)
SHAPES_AGAIN = Course("shapes", lr=1.2e-3, low=0.6, middle=0.15)
"""High noise decides where things go, low noise what they are: the second round goes back to it."""


def noise_levels(count: int, course: Course, generator: torch.Generator) -> Tensor:
    """Timesteps (B,), stratified, in the shares of ``course``."""
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    shares = (0.0, course.low, course.low + course.middle, 1.0)
    level = np.interp(even.numpy(), shares, (0, HIGH_NOISE, PURE_NOISE, 1000))
    return torch.from_numpy(level).long().clamp_max(999)


def kept_signal(t: Tensor, generator: torch.Generator) -> Tensor:
    """Share of the clip's signal that stays in the noised clip (B,): 1 below `HIGH_NOISE`.

    Above it half of the samples keep a random share; above `PURE_NOISE` half keep nothing and a
    quarter a random share.
    """
    draw, share = (torch.rand(len(t), generator=generator) for _ in range(2))
    some = torch.where((t >= HIGH_NOISE) & (draw < WEAKENED), share, 1.0)
    none = torch.where(draw < WEAKENED, 0.0, torch.where(draw < 1.5 * WEAKENED, share, 1.0))
    return torch.where(t >= PURE_NOISE, none, some)


def weakened(
    x0: Tensor, mean: Tensor, eps: Tensor, alpha: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """``(noisy, target)`` (B, C, F, h, w): a clip noised with only the share ``keep`` of its
    signal, and the noise that leads from there to the whole clip, or to ``mean`` where nothing of
    the clip is left.

    ``alpha`` is alphas_cumprod at the sample's timestep. With ``keep`` 1 the target is ``eps``.
    """
    noisy = alpha.sqrt() * keep * x0 + (1 - alpha).sqrt() * eps
    goal = torch.where(keep == 0, mean, x0)
    return noisy, (noisy - alpha.sqrt() * goal) / (1 - alpha).sqrt()


class MeanClips:
    """The mean clip (C, F, h, w) of every caption, over a store's sequences and all their windows.

    A caption that names less (no motion, or nothing) has the mean of all that it leaves open.
    """

    def __init__(self, clips: ClipStore):
        windows = clips.latents.float().unfold(1, FRAMES, 1).mean(dim=1)  # (N, C, h, w, F)
        mean = windows.permute(0, 1, 4, 2, 3)
        shape, colour, motion = clips.labels.long().unbind(1)
        self.total = torch.zeros(len(SHAPES), len(COLOURS), len(MOTIONS), *mean.shape[1:])
        self.count = torch.zeros(*self.total.shape[:3], 1, 1, 1, 1)
        back = torch.tensor([MOTIONS.index(REVERSED[name]) for name in MOTIONS])[motion]
        for clip, word in ((mean, motion), (mean.flip(2), back)):
            where = (shape, colour, word)
            self.total.index_put_(where, clip, accumulate=True)
            self.count.index_put_(where, torch.ones(len(clip), 1, 1, 1, 1), accumulate=True)

    def of(self, captions: list[str]) -> Tensor:
        """Mean clips (B, C, F, h, w)."""
        return torch.stack([self._of(parse_caption(text)) for text in captions])

    def _of(self, words: dict[str, int | None]) -> Tensor:
        named = [words[name] for name in ("shape", "colour", "motion")]
        rows = tuple(slice(None) if word is None else slice(word, word + 1) for word in named)
        return self.total[rows].sum(dim=(0, 1, 2)) / self.count[rows].sum()


def caption_loss(head: nn.Linear, states: Tensor, captions: list[str]) -> Tensor:
    """Cross-entropy of the motion that ``head`` reads from the mean text state.

    Captions that name no motion do not count.
    """
    found = [parse_caption(text)["motion"] for text in captions]
    rows = [row for row, motion in enumerate(found) if motion is not None]
    wanted = torch.tensor([motion for motion in found if motion is not None])
    return nn.functional.cross_entropy(head(states[rows].mean(dim=1)), wanted)


def _noised(
    x0: Tensor, mean: Tensor, alphas: Tensor, course: Course, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(noisy, target)`` as `weakened`, timesteps (B,) and kept shares (B,), drawn for ``x0``."""
    eps = torch.randn(x0.shape, generator=generator)
    t = noise_levels(len(x0), course, generator)
    keep = kept_signal(t, generator)
    alpha, share = (each.view(-1, 1, 1, 1, 1) for each in (alphas[t], keep))
    return *weakened(x0, mean, eps, alpha, share), t, keep


def teach_directions(
    work: Path,
    tokenizer: CLIPTokenizer,
    clips: ClipStore,
    unet: UNet3DConditionModel,
    text_encoder: CLIPTextModel,
    steps: int,
    course: Course = DIRECTIONS,
) -> None:
    """Go on with the first stage's networks, in place; they end with their averaged weights."""
    torch.manual_seed(SEED)
    if course is DIRECTIONS:  # the words of direction are moved apart once
        separate_words(text_encoder, tokenizer)
    head = nn.Linear(WIDTH, len(MOTIONS))
    trained = {"unet": unet, "text_encoder": text_encoder, "head": head}
    module = nn.ModuleDict(trained).requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), course.lr, (0.9, 0.98), weight_decay=0.01)
    alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod
    weight = noise_weight(alphas, WEIGHT_CAP)
    means = MeanClips(clips)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        x0, captions = clips.batch(BATCH, np.random.default_rng((SEED, 2, step)))
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        noisy, target, t, keep = _noised(x0, means.of(captions), alphas, course, generator)
        with half_precision():
            states = text_encoder(tokenize(tokenizer, captions)).last_hidden_state
            predicted = unet(noisy, t, states).sample
        error = (predicted - target).square().mean(dim=(1, 2, 3, 4))
        words = caption_loss(head, states.float(), captions)
        pure = (error / alphas[t] * (1 - alphas[t]))[keep == 0].mean()
        measures = {"eps": error.mean(), "words": words, "mean_clip": pure}
        rounded = {name: round(value.item(), 5) for name, value in measures.items()}
        return (weight[t] * error).mean() + CAPTION_WEIGHT * words, rounded

    with float_output(unet):
        named: dict[str, Any] = {"steps": steps, "work": work, "lr": course.lr, "ema_decay": 0.998}
        ema = run_stage(course.name, module, optimizer, loss_of, **named)
    assert ema is not None
    module.eval().load_state_dict(ema.shadow)
