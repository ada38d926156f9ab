"""Samplers for video latents ``(B, C, F, h, w)``: consistency sampling, and the teacher's solvers.

Noise order. Every video has its own `torch.Generator` on the CPU. From it come, in float32 and in
the order C, F, h, w: first the initial noise (not drawn when ``init_latents`` is given), then, for
LCM only, the noise of each step but the last. A clip therefore depends on its own seed alone: it is
the same in a batch, by itself, and on any device up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .noise import (
    SIGMA_DATA,
    TIMESTEP_SCALING,
    TRAIN_TIMESTEPS,
    TRAJECTORY_STEPS,
    check_steps,
    guided,
)
from .path import NoisePath

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(latents (B, C, F, h, w), level (B,), text (B, L, D)) -> output (B, C, F, h, w)``: a network's
pass, whose output the model's `NoisePath` reads."""


@dataclass(frozen=True)
class SamplerStep:
    """Argument of ``on_step`` after a step: ``latents`` and ``x0`` are (B, C, F, h, w) float32."""

    index: int
    """0 for the first step, ``steps - 1`` for the last."""
    steps: int
    level: float
    """The noise level that the model was called at."""
    latents: Tensor
    """The state after the step."""
    x0: Tensor
    """The clip as the model saw it in this step, for previews."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The keyword arguments that every sampler takes."""

    negative_text: Tensor | None = None
    """(B, L, D) or (1, L, D): the unconditional half of guidance."""
    guidance_scale: float = 1.0
    """The usual CFG scale, ``eps_u + g (eps_c - eps_u)``. At 1 the model is called on the prompts
    only, otherwise on both halves in one batch of 2B, the prompts first."""
    seed: int | Sequence[int] | None = None
    """One seed per video, or one number ``s`` for the seeds ``s, s + 1, ...`` of the batch."""
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """Instead of ``seed``: one generator per video, or one for all in turn."""
    init_latents: Tensor | None = None
    """(B, C, F, h, w) to start from instead of noise, at the noise level of the first step."""
    on_step: Callable[[SamplerStep], None] | None = None
    """Called after each step. An exception raised in it stops the run and is passed on."""


@torch.no_grad()
def sample_lcm(
    predict: Predict,
    path: NoisePath,
    text: Tensor,
    shape: Sequence[int],
    steps: int,
    *,
    timestep_scaling: float = TIMESTEP_SCALING,
    sigma_data: float = SIGMA_DATA,
    original_steps: int = TRAJECTORY_STEPS,
    **options: Any,
) -> Tensor:
    """Multistep consistency sampling (arXiv 2303.01469, algorithm 1), as `LCMScheduler` does it.

    For a distilled student, in 1, 2, 4 or 8 steps without guidance: a clip in every step, and noise
    on it for the next. ``timestep_scaling``, ``sigma_data`` and ``original_steps`` must be those of
    the distillation. ``text`` (B, L, D), ``shape`` (B, C, F, h, w), ``options`` as
    `SamplingOptions`; ``steps`` is at most ``original_steps``. Returns latents (B, C, F, h, w) in
    float32, clips or, on a part of a flow, states at its end. Raises ValueError for arguments that
    do not fit.
    """
    path = path.bounded(timestep_scaling, sigma_data)
    run = _Run(predict, path, text, shape, path.few_steps(steps, original_steps), options)
    for level, following in run.pairs():
        output = run.predict(run.latents, level)
        clip = path.consistency(run.latents, path.read(run.latents, output, level).x0, level)
        state = path.landing(run.latents, clip, level)
        run.step(state if following is None else path.renoise(state, run.noise(), following), clip)
    return run.latents


@torch.no_grad()
def sample_ode(
    predict: Predict,
    path: NoisePath,
    text: Tensor,
    shape: Sequence[int],
    steps: int,
    *,
    order: int = 1,
    **options: Any,
) -> Tensor:
    """The teacher's deterministic solver, from evenly spaced levels down to the clean end; on a
    flow with a shift of its own for that, evenly spaced before it.

    ``order`` 1 is DDIM (arXiv 2010.02502, eta 0), Euler on a flow; 2 is DPM-Solver++ 2M (arXiv
    2211.01095, algorithm 2), whose last step is of order 1 and, as in diffusers, goes to the clip
    itself whatever the path says of its end. Arguments and errors else as `sample_lcm`; ``steps``
    is at most 1000.
    """
    check_steps(steps, TRAIN_TIMESTEPS)
    levels = path.teacher.levels(steps).flip(0)
    run = _Run(predict, path, text, shape, levels, options)
    earlier: tuple[Tensor, Tensor] | None = None  # prediction and length of the step before
    for level, following in run.pairs():
        x0, eps = path.read(run.latents, run.predict(run.latents, level), level)
        if order == 1:
            to = run.end if following is None else following
            run.step(path.add_noise(x0, eps, to), x0)
        elif following is None:
            run.step(path.landing(run.latents, x0, level), x0)
        else:
            length = _log_snr(path, following) - _log_snr(path, level)
            aim = x0
            if earlier is not None:
                aim = x0 + (x0 - earlier[0]) * length / (2 * earlier[1])
            (_, before), (alpha, sigma) = (path.alpha_sigma(t, x0.ndim) for t in (level, following))
            run.step(sigma / before * run.latents - alpha * torch.expm1(-length) * aim, x0)
            earlier = x0, length
    return run.latents


def _log_snr(path: NoisePath, level: Tensor) -> Tensor:
    alpha, sigma = path.alpha_sigma(level, 5)
    return (alpha / sigma).log()


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "lcm": sample_lcm,
    "ddim": sample_ode,
    "dpmpp": partial(sample_ode, order=2),
}
"""Samplers by name: ``(predict, path, text, shape, steps, **options)``."""


class _Run:
    """What every sampler keeps: the latents, the levels ahead, the noise of each video."""

    def __init__(
        self,
        predict: Predict,
        path: NoisePath,
        text: Tensor,
        shape: Sequence[int],
        levels: Tensor,
        options: dict[str, Any],
    ):
        self.options = chosen = SamplingOptions(**options)
        if chosen.init_latents is None and not path.in_noise:
            raise ValueError(
                "This model takes over clips that another one begins; give its states as "
                "`init_latents`."
            )
        self.shape = _checked_shape(shape, text, chosen.init_latents)
        self.predict = _with_guidance(predict, text, chosen)
        self.generators = _generators(chosen, self.shape[0])
        self.device, self.path = text.device, path
        self.numbers, self.levels = levels.tolist(), levels.to(self.device)
        self.latents = (
            self.noise() if chosen.init_latents is None
            else chosen.init_latents.to(self.device, torch.float32)
        )  # fmt: skip
        self.done = 0

    @property
    def end(self) -> Tensor:
        """The clean end (B,) of a sampling run."""
        return self._whole(self.path.end)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Each level (B,) with the one after it; None after the last."""
        whole = [self._whole(level) for level in self.levels]
        yield from zip(whole, [*whole[1:], None], strict=True)

    def _whole(self, level: Tensor | float) -> Tensor:
        return (
            torch.as_tensor(level, device=self.device).to(self.levels.dtype).repeat(self.shape[0])
        )

    def noise(self) -> Tensor:
        return randn_tensor(self.shape, self.generators, self.device, torch.float32)

    def step(self, latents: Tensor, x0: Tensor) -> None:
        self.latents = latents
        if self.options.on_step is not None:
            count, level = len(self.numbers), float(self.numbers[self.done])
            self.options.on_step(SamplerStep(self.done, count, level, latents, x0))
        self.done += 1


def _with_guidance(
    predict: Predict, text: Tensor, options: SamplingOptions
) -> Callable[[Tensor, Tensor], Tensor]:
    guidance_scale, negative = options.guidance_scale, options.negative_text
    if guidance_scale == 1.0:
        return lambda latents, level: predict(latents, level, text).float()
    shapes = ((1, *text.shape[1:]), tuple(text.shape))
    if negative is None or tuple(negative.shape) not in shapes:
        got = None if negative is None else tuple(negative.shape)
        raise ValueError(
            f"`guidance_scale`={guidance_scale} needs `negative_text` like the text "
            f"{tuple(text.shape)}, got {got}; encode the negative prompt (it may be empty)."
        )
    both = torch.cat([text, negative.to(text).expand_as(text)])

    def with_guidance(latents: Tensor, level: Tensor) -> Tensor:
        out = predict(latents.repeat(2, 1, 1, 1, 1), level.repeat(2), both).float()
        cond, uncond = out.chunk(2)
        return guided(cond, uncond, guidance_scale - 1)

    return with_guidance


def _generators(options: SamplingOptions, batch: int) -> list[torch.Generator]:
    seed, generator = options.seed, options.generator
    if (seed is None) == (generator is None):
        raise ValueError("give exactly one of `seed` and `generator`.")
    if isinstance(generator, torch.Generator):
        return [generator] * batch
    if isinstance(seed, int):
        seed = range(seed, seed + batch)
    if generator is None:
        generator = [torch.Generator().manual_seed(number) for number in seed or ()]
    if len(generator) != batch:
        raise ValueError(f"got {len(generator)} seeds for {batch} videos; give one per video.")
    return list(generator)


def _checked_shape(
    shape: Sequence[int], text: Tensor, init_latents: Tensor | None
) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) != 5 or min(shape) < 1:
        raise ValueError(f"`shape`={shape} is not a shape of video latents; use (B, C, F, h, w).")
    if text.ndim != 3 or len(text) != shape[0]:
        raise ValueError(f"`text` has shape {tuple(text.shape)}, expected ({shape[0]}, L, D).")
    if init_latents is not None and tuple(init_latents.shape) != shape:
        raise ValueError(f"`init_latents` has shape {tuple(init_latents.shape)}, expected {shape}.")
    return shape
