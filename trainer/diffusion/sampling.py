"""Samplers for video latents ``(B, C, F, h, w)``, each a diffusers scheduler and one shared loop.

Noise order. Every video has its own `torch.Generator` on the CPU. From it come, in float32 and in
the order C, F, h, w: first the initial noise (not drawn when ``init_latents`` is given), then, for
LCM only, the noise of each step but the last. A clip therefore depends on its own seed alone: it is
the same in a batch, by itself, and on any device up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .consistency import SIGMA_DATA, TIMESTEP_SCALING, check_steps
from .schedule import NoiseSchedule
from .solver import TRAJECTORY_STEPS, guided_eps

PredictEps = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(latents (B, C, F, h, w), timesteps (B,) int64, text (B, L, D)) -> eps (B, C, F, h, w)``."""


@dataclass(frozen=True)
class SamplerStep:
    """What ``on_step`` is told after a step: ``latents`` and ``x0`` are (B, C, F, h, w) float32."""

    index: int
    """0 for the first step, ``steps - 1`` for the last."""
    steps: int
    timestep: int
    """The timestep that the model was called at."""
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
    """One seed a video, or one number ``s`` for the seeds ``s, s + 1, ...`` of the batch."""
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """In place of ``seed``: one generator a video, or one that serves them in turn."""
    init_latents: Tensor | None = None
    """(B, C, F, h, w) to start from in place of noise, at the noise level of the first timestep."""
    on_step: Callable[[SamplerStep], None] | None = None
    """Called after each step. An exception raised in it stops the run and is passed on."""


class _ConsistencyScheduler(LCMScheduler):
    """diffusers' own has 0.5 for `sigma_data` in its code."""

    sigma_data = SIGMA_DATA

    def get_scalings_for_boundary_condition_discrete(self, timestep: Any) -> tuple[float, float]:
        scaled = timestep * self.config.timestep_scaling
        power = scaled**2 + self.sigma_data**2
        return self.sigma_data**2 / power, scaled / power**0.5


def sample_lcm(
    predict_eps: PredictEps,
    text: Tensor,
    shape: Sequence[int],
    steps: int,
    schedule_config: Mapping[str, Any],
    *,
    timestep_scaling: float = TIMESTEP_SCALING,
    sigma_data: float = SIGMA_DATA,
    original_steps: int = TRAJECTORY_STEPS,
    **options: Any,
) -> Tensor:
    """Multistep consistency sampling (arXiv 2303.01469, algorithm 1) by `LCMScheduler`.

    For a distilled student, in 1, 2, 4 or 8 steps without guidance. ``timestep_scaling``,
    ``sigma_data`` and ``original_steps`` must be those of the distillation. Arguments and errors
    else as `SamplingOptions` and `sample_with`; ``steps`` is at most ``original_steps``.
    """
    check_steps(steps, original_steps)
    scheduler = _ConsistencyScheduler(
        **_schedule_options(schedule_config),
        prediction_type="epsilon",
        original_inference_steps=original_steps,
        timestep_scaling=timestep_scaling,
    )
    scheduler.sigma_data = sigma_data
    return sample_with(scheduler, predict_eps, text, shape, steps, SamplingOptions(**options))


def sample_ddim(
    predict_eps: PredictEps,
    text: Tensor,
    shape: Sequence[int],
    steps: int,
    schedule_config: Mapping[str, Any],
    *,
    timestep_spacing: str = "trailing",
    **options: Any,
) -> Tensor:
    """DDIM sampling with eta 0 (arXiv 2010.02502) by `DDIMScheduler`, without clipping.

    "trailing" spacing starts at the last training timestep; "leading" makes few-step DDIM start
    from a noise level that the initial noise does not have. Arguments and errors else as
    `SamplingOptions` and `sample_with`.
    """
    scheduler = DDIMScheduler(
        **_schedule_options(schedule_config),
        prediction_type="epsilon",
        clip_sample=False,
        timestep_spacing=timestep_spacing,
    )
    return sample_with(scheduler, predict_eps, text, shape, steps, SamplingOptions(**options))


def sample_dpmpp(
    predict_eps: PredictEps,
    text: Tensor,
    shape: Sequence[int],
    steps: int,
    schedule_config: Mapping[str, Any],
    *,
    timestep_spacing: str = "trailing",
    **options: Any,
) -> Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) by `DPMSolverMultistepScheduler`.

    Arguments and errors else as `SamplingOptions` and `sample_with`.
    """
    config = _schedule_options(schedule_config)
    del config["set_alpha_to_one"]  # this scheduler always ends at sigma 0
    scheduler = DPMSolverMultistepScheduler(
        **config,
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing=timestep_spacing,
    )
    return sample_with(scheduler, predict_eps, text, shape, steps, SamplingOptions(**options))


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "lcm": sample_lcm,
    "ddim": sample_ddim,
    "dpmpp": sample_dpmpp,
}
"""Samplers by name: ``(predict_eps, text, shape, steps, schedule_config, **options)``."""


@torch.no_grad()
def sample_with(
    scheduler: Any,
    predict_eps: PredictEps,
    text: Tensor,
    shape: Sequence[int],
    steps: int,
    options: SamplingOptions,
) -> Tensor:
    """Clean latents ``shape`` = (B, C, F, h, w), float32, by a fresh diffusers scheduler for eps.

    ``text`` is (B, L, D); sampling happens on its device, and without gradients.

    Raises:
        ValueError: ``steps`` out of range, shapes that do not fit, guidance without
            ``negative_text``, or not exactly one of ``seed`` and ``generator``.
    """
    check_steps(steps, scheduler.config.num_train_timesteps)
    shape = _checked_shape(shape, text, options.init_latents)
    predict = _guided(predict_eps, text, options)
    generators = _generators(options, shape[0])
    if options.init_latents is None:
        latents = randn_tensor(shape, generators, text.device, torch.float32)
    else:
        latents = options.init_latents.to(text.device, torch.float32)
    schedule = NoiseSchedule(scheduler.alphas_cumprod.float()).to(text.device)
    scheduler.set_timesteps(steps)
    _check_count(steps, scheduler.timesteps)
    for index, t in enumerate(scheduler.timesteps.tolist()):
        timesteps = torch.full((shape[0],), t, dtype=torch.long, device=text.device)
        eps = predict(latents, timesteps).float()
        before = latents
        latents = scheduler.step(eps, t, before, generator=generators, return_dict=False)[0]
        if options.on_step is not None:
            x0 = schedule.x0_from_eps(before, eps, timesteps)
            options.on_step(SamplerStep(index, steps, t, latents, x0))
    return latents


def _guided(
    predict_eps: PredictEps, text: Tensor, options: SamplingOptions
) -> Callable[[Tensor, Tensor], Tensor]:
    guidance_scale, negative = options.guidance_scale, options.negative_text
    if guidance_scale == 1.0:
        return lambda latents, timesteps: predict_eps(latents, timesteps, text)
    shapes = ((1, *text.shape[1:]), tuple(text.shape))
    if negative is None or tuple(negative.shape) not in shapes:
        got = None if negative is None else tuple(negative.shape)
        raise ValueError(
            f"`guidance_scale`={guidance_scale} needs `negative_text` like the text "
            f"{tuple(text.shape)}, got {got}; encode the negative prompt (it may be empty)."
        )
    both = torch.cat([text, negative.to(text).expand_as(text)])

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        eps = predict_eps(latents.repeat(2, 1, 1, 1, 1), timesteps.repeat(2), both).float()
        eps_cond, eps_uncond = eps.chunk(2)
        return guided_eps(eps_cond, eps_uncond, guidance_scale - 1)

    return predict


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
        raise ValueError(f"got {len(generator)} seeds for {batch} videos; give one a video.")
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


def _check_count(steps: int, timesteps: Tensor) -> None:
    """Refuse the step counts, 61 the lowest, where diffusers' "trailing" spacing is one too long.

    Its floating-point range then ends in timestep -1, which indexes the noisiest level.
    """
    if len(timesteps) != steps or int(timesteps.min()) < 0:
        raise ValueError(
            f"`steps`={steps} gives {len(timesteps)} timesteps in diffusers, by a rounding error; "
            f"use {steps - 1}."
        )


def _schedule_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that give every diffusers scheduler the same noise levels."""
    schedule = NoiseSchedule.from_config(config)
    if float(schedule.alphas_cumprod[-1]) == 0:
        raise ValueError(
            "a `rescale_betas_zero_snr` schedule cannot be sampled from eps: its last timestep "
            "holds no signal. Use the base model's config without rescaling."
        )
    return dict(schedule.config)
