"""Few-step sampling as in the LoRAs' training: noise levels, consistency function, noise.

A distilled student is trained on 50 noise levels (``original_steps``). ComfyUI's sampler ``lcm``
with the scheduler ``simple`` over a table of just these levels takes exactly the steps of
diffusers' `LCMScheduler`, which is the trainer's sampler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .advice import advise
from .core import core_moves_step_seed, wrap
from .info import video_info
from .latents import frames_of

TIMESTEP_SCALING = 4.0
ORIGINAL_STEPS = 50
SIGMA_DATA = 0.5
WRAPPER_KEY = "mcm_step_noise"
SEEDS = 2**64


def apply_model_sampling(
    model: Any,
    timestep_scaling: float = TIMESTEP_SCALING,
    original_steps: int = ORIGINAL_STEPS,
    sigma_data: float = SIGMA_DATA,
    shift: float | None = None,
    low: float | None = None,
) -> Any:
    """A clone of MODEL ``model`` that is sampled as a student distilled with these numbers: on a
    flow (Wan) ``shift`` and ``low``, where its part of the levels ends, on other models the first
    three.

    Raises ValueError for a MODEL of another pack, and for numbers out of range.
    """
    from .core_models import flow_sampling

    info = video_info(model)
    if info.stride:
        sampling = flow_sampling(model, shift, low)
    else:
        sampling = _table_sampling(model, timestep_scaling, original_steps, sigma_data)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    wrap(clone, "SAMPLER_SAMPLE", WRAPPER_KEY, _with_step_seed)
    advise(clone)
    return clone


def _table_sampling(
    model: Any, timestep_scaling: float, original_steps: int, sigma_data: float
) -> Any:
    """The sampling of a student of a model that predicts noise or velocity."""
    info = video_info(model)
    train_steps = int(info.scheduler_config.get("num_train_timesteps", 1000))
    if not (math.isfinite(timestep_scaling) and timestep_scaling > 0):
        raise ValueError(
            f"`timestep_scaling`={timestep_scaling} must be a positive number; this pack's LoRAs "
            f"use {TIMESTEP_SCALING:g}."
        )
    if not 1 <= original_steps <= train_steps:
        raise ValueError(
            f"`original_steps`={original_steps} is not within 1 to {train_steps}; this pack's "
            f"LoRAs use {ORIGINAL_STEPS}."
        )
    if info.scheduler_config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"'{info.name}' has a zero terminal SNR schedule, whose last level holds no signal: "
            "few-step LoRAs cannot be used with it. Use the base model without rescaling."
        )
    return _sampling_class(prediction_of(model))(
        model.model.model_config, info.scheduler_config, timestep_scaling, original_steps,
        sigma_data,
    )  # fmt: skip


def prediction_of(model: Any) -> str:
    """What the network of MODEL ``model`` predicts, "EPS" or "V_PREDICTION", as core reads it now:
    by the checkpoint, or by a *ModelSamplingDiscrete* after it.

    Raises ValueError for any other kind.
    """
    import comfy.model_sampling as kinds

    sampling = model.get_model_object("model_sampling")
    others = (kinds.EDM, kinds.X0)  # have the same base classes, so they are checked first
    if isinstance(sampling, kinds.EPS) and not isinstance(sampling, others):
        return "V_PREDICTION" if isinstance(sampling, kinds.V_PREDICTION) else "EPS"
    found = type(sampling).__mro__[1:3]
    raise ValueError(
        f"The MODEL is sampled as {' with '.join(each.__name__ for each in found)}; clip models of "
        "this pack predict noise (eps) or velocity (v_prediction). Remove the model sampling node "
        "before this one."
    )


@lru_cache
def _sampling_class(prediction: str) -> type:
    """The model sampling for what the network predicts, "EPS" or "V_PREDICTION"."""
    import comfy.model_sampling

    from ...trainer.diffusion.noise import boundary_scalings
    from .model import diffusers_sigmas

    class FewStepSampling(
        comfy.model_sampling.ModelSamplingDiscrete, getattr(comfy.model_sampling, prediction)
    ):
        """``original_steps`` noise levels of the base model and the consistency function."""

        def __init__(
            self, model_config, scheduler_config, timestep_scaling, original_steps, boundary
        ):
            super().__init__(model_config)
            levels = diffusers_sigmas(scheduler_config)
            self.timestep_scaling, self.original_steps = timestep_scaling, original_steps
            self.boundary = boundary  # core's own `sigma_data` means something else
            self.stride = len(levels) // original_steps
            self.set_sigmas(levels[self.stride - 1 :: self.stride][:original_steps])

        def timestep(self, sigma):
            """The training timesteps of ``sigma``, each the nearest of the table."""
            return super().timestep(sigma) * self.stride + self.stride - 1

        def sigma(self, timestep):
            """Noise levels of training timesteps, interpolated between those of the table."""
            return super().sigma((timestep.float() + 1) / self.stride - 1)

        def calculate_denoised(self, sigma, model_output, model_input):
            """``c_skip z + c_out x0`` (arXiv 2310.04378); z is ComfyUI's x over sqrt(1 + sigma^2),
            and x0 the prediction.
            """
            x0 = super().calculate_denoised(sigma, model_output, model_input)
            shape = (-1, *[1] * (x0.ndim - 1))
            level = sigma.reshape(shape)
            t = self.timestep(sigma)
            c_skip, c_out = boundary_scalings(t, self.timestep_scaling, self.boundary)
            z = model_input / (1 + level**2) ** 0.5
            return c_out.reshape(shape) * x0 + c_skip.reshape(shape) * z

    return FewStepSampling


def _with_step_seed(executor: Any, guider: Any, sigmas: Any, extra_args: dict, *rest, **named):
    """Around ``KSAMPLER.sample(guider, sigmas, extra_args, ...)``: fresh noise in the steps of
    core's ``lcm``.

    Before 0.7 it starts on the CPU from the seed of the initial noise, so that its first new noise
    is the initial noise again; since then it adds 1 itself, and fails for the largest seed. Only
    MODELs of this pack are concerned; no function of core is replaced.
    """
    from comfy.k_diffusion.sampling import sample_lcm

    seed = extra_args.get("seed")
    if getattr(executor.class_obj, "sampler_function", None) is sample_lcm and seed is not None:
        seed = (seed + (0 if core_moves_step_seed() else 1)) % SEEDS
        # torch takes -1 for the largest seed, and 1 can be added to it
        extra_args = {**extra_args, "seed": -1 if seed == SEEDS - 1 else seed}
    return executor(guider, sigmas, extra_args, *rest, **named)


def few_step_sigmas(model: Any, steps: int, denoise: float = 1.0) -> Tensor:
    """SIGMAS (steps + 1,) of `LCMScheduler.set_timesteps(steps, strength=denoise)`, 0 at the end.

    With ``denoise`` below 1 the steps are spread over the lower noise levels only; 0 gives an empty
    tensor, for which samplers return the latents unchanged. Raises ValueError for a MODEL without
    few-step sampling and for more steps than levels.
    """
    video_info(model)
    sampling = model.get_model_object("model_sampling")
    if not hasattr(sampling, "original_steps"):
        raise ValueError(
            "This MODEL still has the base model's noise levels. Connect the MODEL of 'Load MCM "
            "LoRA' or 'MCM Model Sampling' here (and to the sampler)."
        )
    levels = int(sampling.original_steps * denoise)
    if denoise <= 0:
        return torch.empty(0)
    if not 1 <= steps <= levels:
        raise ValueError(
            f"`steps`={steps} with `denoise`={denoise:g} is not possible: there are {levels} noise "
            "levels to choose from. Use 1, 2, 4 or 8 steps, or a higher `denoise`."
        )
    chosen = [int(index * (levels / steps)) for index in range(steps)]
    table = sampling.sigmas.cpu()
    return torch.cat([table[[levels - 1 - index for index in chosen]], torch.zeros(1)])


def core_noise(seed: int, shape: Sequence[int], frames: int) -> Iterator[Tensor]:
    """KSampler's start noise: the whole batch in one draw."""
    import comfy.sample

    yield comfy.sample.prepare_noise(torch.empty(tuple(shape)), seed)


def video_noise(seed: int, shape: Sequence[int], frames: int) -> Iterator[Tensor]:
    """The trainer's order (`python -m trainer sample`) and, for one video, AnimateDiffPipeline's.

    Video v has its own generator of seed ``seed + v``; every draw is (C, F, h, w). A video does not
    depend on the others of its batch.
    """
    if len(shape) == 5:
        generators = [_generator(seed + video) for video in range(shape[0])]
        while True:
            yield torch.stack([torch.randn(tuple(shape[1:]), generator=g) for g in generators])
    rows, channels, height, width = shape
    generators = [_generator(seed + video) for video in range(rows // frames)]
    while True:
        drawn = [torch.randn(channels, frames, height, width, generator=g) for g in generators]
        yield torch.cat([video.transpose(0, 1) for video in drawn])


def frames_noise(seed: int, shape: Sequence[int], frames: int) -> Iterator[Tensor]:
    """TextToVideoSDPipeline's order: one generator, first (videos, C, F, h, w), then the rows."""
    rows, channels, height, width = shape
    generator = _generator(seed)
    start = torch.randn(rows // frames, channels, frames, height, width, generator=generator)
    yield start.transpose(1, 2).flatten(0, 1)
    while True:
        yield torch.randn(tuple(shape), generator=generator)


NOISE_ORDERS = {"core": core_noise, "video": video_noise, "frames": frames_noise}
"""Name -> ``(seed, (videos * F, C, h, w), F)`` -> the start noise, then that of each step.

All is drawn in float32 on the CPU, so a clip is the same on every device up to rounding.
"""


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % SEEDS)


def noise_of(order: str, seed: int, shape: Sequence[int], frames: int | None) -> Iterator[Tensor]:
    """The noise of one sampling run; ``frames`` None means that the batch is one video. Latents of
    five axes (videos, C, f, h, w) say themselves what a video is.

    Raises ValueError for latents that are not whole videos, and for an order that theirs has not.
    """
    if len(shape) == 5:
        if order == "frames":
            raise ValueError(
                "The `noise_order` 'frames' is that of diffusers' TextToVideoSDPipeline, whose "
                "clips are batches of frames. For Wan choose 'video' or 'core'."
            )
        return NOISE_ORDERS[order](seed, shape, 0)
    if len(shape) != 4 or shape[0] % (frames or shape[0]):
        raise ValueError(
            f"Latents of shape {tuple(shape)} are not whole videos of {frames or 'any'} frames "
            "(videos * frames, C, h, w), or belong to another kind of model. Make them with Empty "
            "Latent Video."
        )
    return NOISE_ORDERS[order](seed, shape, frames or shape[0])


class StartNoise:
    """NOISE: what a sampling run starts from, in one of ``NOISE_ORDERS``."""

    def __init__(self, seed: int, order: str) -> None:
        self.seed, self.order = seed, order

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise (videos * F, C, h, w) float32 for LATENT ``input_latent``.

        It says who drew it: a MODEL that knows more of the videos than the LATENT draws it again
        (`latents.sample_videos`).
        """
        samples = input_latent["samples"]
        noise = self.draw(samples.shape, frames_of(samples))
        noise.drawn_by = self
        return noise

    def draw(self, shape: Sequence[int], frames: int | None) -> Tensor:
        """The same for latents of ``shape`` (videos * F, C, h, w) in videos of ``frames``."""
        return next(noise_of(self.order, self.seed, shape, frames))


def few_step_sampler(order: str) -> Any:
    """SAMPLER: core's ``lcm`` with the noise of its steps in one of ``NOISE_ORDERS``.

    Its generators first pass over the start noise, which `StartNoise` draws from the same seed.
    The order "core" is KSampler's own ``lcm``, whatever that draws on this machine.
    """
    from comfy.k_diffusion.sampling import sample_lcm
    from comfy.samplers import KSAMPLER

    if order == "core":
        return KSAMPLER(sample_lcm)

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra_args = extra_args or {}
        options = extra_args.get("model_options", {}).get("transformer_options", {})
        seed = extra_args.get("seed") or 0
        noise = noise_of(order, seed, x.shape, options.get("mcm_frames"))
        next(noise)

        def step_noise(sigma, sigma_next):
            return next(noise).to(x)

        return sample_lcm(model, x, sigmas, extra_args, callback, disable, noise_sampler=step_noise)

    return KSAMPLER(sample)
