"""How a base model mixes clip and noise, and what its network's output means.

A point of a trajectory is ``z = alpha x0 + sigma eps``. The amount of noise in it is its *level*:
an integer timestep of a variance-preserving model, a number from 0 to 1 of a flow. Levels are
tensors (B,) or (), and 0 is the clean end. All other code uses a `NoisePath` and does not depend on
its kind.

Arithmetic is done in float32, or float64 when an input is float64: half precision comes back as
float32. Functions import diffusers themselves: ComfyUI must list the nodes of a Python without it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .path import NoisePath, Reading, Whole, prepare

TRAJECTORY_STEPS = 50
"""Places of LCM's trajectory (arXiv 2310.04378, section 4.3)."""
FLOW_STEPS = 48
"""Of a flow, as in rCM. 1, 2, 3, 4, 6 and 8 divide it: the times of sampling in so many steps are
among its levels.
"""
TRAIN_TIMESTEPS = 1000
TIMESTEP_SCALING = 4.0
"""MCM's value; diffusers' default is 10. Samplers must use the value of the training."""
SIGMA_DATA = 0.5

SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "steps_offset",
)
"""Keys of a ``scheduler_config.json`` that define the schedule; all others concern one sampler."""

EPSILON, VELOCITY = "epsilon", "v_prediction"
FLOW = "velocity"
"""What the network of a flow predicts; its families say so themselves."""
PREDICTIONS = (EPSILON, VELOCITY)
"""Values of ``prediction_type`` that can be read: noise, or the velocity of arXiv 2202.00512."""


@dataclass(frozen=True, eq=False)
class VariancePreserving(Whole):
    """``alpha_t = sqrt(alphas_cumprod[t])``, ``sigma_t = sqrt(1 - alphas_cumprod[t])`` (DDPM eq. 4,
    arXiv 2006.11239); levels are integer timesteps ``0 .. T - 1``, -1 the end of a sampling run.

    ``alphas_cumprod`` (T,) float32, decreasing, T = 1000 for every known base model.
    ``final_alpha_cumprod`` is the level of timestep -1: 1, or ``alphas_cumprod[0]`` where the base
    model's config says ``set_alpha_to_one: false``. ``config`` holds `SCHEDULE_KEYS`, every one
    explicit, for building diffusers schedulers that agree.
    """

    alphas_cumprod: Tensor
    final_alpha_cumprod: float = 1.0
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    prediction: str = EPSILON
    timestep_scaling: float = TIMESTEP_SCALING
    sigma_data: float = SIGMA_DATA
    end: ClassVar[float] = -1
    places: ClassVar[int] = TRAJECTORY_STEPS

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if alphas.ndim != 1 or alphas.dtype != torch.float32:
            raise ValueError(
                f"`alphas_cumprod` must be one-dimensional float32, got {tuple(alphas.shape)} "
                f"{alphas.dtype}; build it with `VariancePreserving.from_config`."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VariancePreserving:
        """Path of a ``scheduler_config.json``, computed by diffusers' `DDIMScheduler`.

        The defaults of the scheduler classes differ (linear or scaled_linear betas), so a config
        without explicit values is refused.

        Raises ValueError if the betas are not given, their schedule is unknown to diffusers, or the
        network predicts something else than `PREDICTIONS`.
        """
        from diffusers import DDIMScheduler

        prediction = config.get("prediction_type") or PREDICTIONS[0]
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"`prediction_type`={prediction!r} of the base model is not supported; its network "
                f"must predict {' or '.join(PREDICTIONS)}."
            )
        needed = ("beta_start", "beta_end", "beta_schedule")
        missing = [key for key in needed if config.get(key) is None]
        if missing and config.get("trained_betas") is None:
            raise ValueError(
                f"scheduler config lacks {missing}; got the keys {sorted(config)}. "
                "Use the `scheduler/scheduler_config.json` of the base model."
            )
        try:
            scheduler: Any = DDIMScheduler(**{k: config[k] for k in SCHEDULE_KEYS if k in config})
        except NotImplementedError as error:
            raise ValueError(
                f"`beta_schedule`={config.get('beta_schedule')!r} is not supported; "
                "use 'linear', 'scaled_linear' or 'squaredcos_cap_v2'."
            ) from error
        resolved = {key: scheduler.config[key] for key in SCHEDULE_KEYS}
        alphas, final = scheduler.alphas_cumprod.float(), float(scheduler.final_alpha_cumprod)
        return cls(alphas, final, resolved, prediction)

    def levels(self, count: int) -> Tensor:
        """Timesteps ``k - 1, 2k - 1, ..., T - 1`` (count,) int64 with ``k = T / count``, rounded:
        the "trailing" spacing, and with 50 the trajectory of LCM.
        """
        train = len(self.alphas_cumprod)
        if not 1 <= count <= train:
            raise ValueError(f"`count`={count} noise levels; use 1 to {train}.")
        return (torch.arange(1, count + 1) * (train / count)).round().long() - 1

    def few_steps(self, steps: int, places: int) -> Tensor:
        return self.levels(places)[few_step_places(steps, places)]

    @property
    def teacher(self) -> VariancePreserving:
        return self

    def share(self, level: Tensor) -> Tensor:
        return level / len(self.alphas_cumprod)

    def model_time(self, level: Tensor) -> Tensor:
        return level

    def alpha_sigma(
        self, level: Tensor, ndim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """As `NoisePath.alpha_sigma`. Raises ValueError for levels that are no integers (B,)."""
        if level.ndim > 1 or level.is_floating_point() or level.dtype == torch.bool:
            raise ValueError(
                f"`level` must be integer timesteps of shape (B,), got {tuple(level.shape)} "
                f"{level.dtype}; use torch.long."
            )
        # No check of the range: it would make a GPU wait for the host in every call.
        inside = self.alphas_cumprod[level.clamp(min=0)]
        power = torch.where(level < 0, torch.full_like(inside, self.final_alpha_cumprod), inside)
        power = power.to(dtype).reshape(-1, *[1] * (ndim - 1))
        return power.sqrt(), (1 - power).sqrt()

    def steadiness(self, level: Tensor, ndim: int) -> Tensor:
        alpha, sigma = self.alpha_sigma(level, ndim)
        return alpha / sigma if self.prediction == EPSILON else 1 / sigma

    def add_noise(self, x0: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        x0, eps, alpha, sigma = prepare(self, x0, eps, level)
        return alpha * x0 + sigma * eps

    def read(self, z: Tensor, output: Tensor, level: Tensor) -> Reading:
        """As `NoisePath.read`, from eps or from ``v = alpha eps - sigma x0`` (arXiv 2202.00512,
        appendix D). Not finite where alpha is 0: the last timestep of a zero terminal SNR schedule.
        """
        z, output, alpha, sigma = prepare(self, z, output, level)
        eps = alpha * output + sigma * z if self.prediction == VELOCITY else output
        return Reading((z - sigma * eps) / alpha, eps)

    def consistency(self, z: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        """``c_skip z + c_out x0`` (arXiv 2310.04378, eq. 6 and appendix)."""
        scales = boundary_scalings(level, self.timestep_scaling, self.sigma_data)
        shape = (-1, *[1] * (z.ndim - 1))
        c_skip, c_out = (scale.to(x0.dtype).reshape(shape) for scale in scales)
        return c_skip * z + c_out * x0

    def bounded(self, timestep_scaling: float, sigma_data: float) -> VariancePreserving:
        return replace(self, timestep_scaling=timestep_scaling, sigma_data=sigma_data)

    def to(self, device: torch.device | str) -> VariancePreserving:
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))


F = TypeVar("F", bound="Flow")


@dataclass(frozen=True)
class Flow:
    """What a flow and its parts have in common: ``z_t = (1 - t) x0 + t eps`` with the velocity
    ``v = eps - x0`` as the network's output (arXiv 2209.03003); levels are t, 0 to 1.

    ``shift`` moves evenly spaced levels towards noise, ``t' = s t / (1 + (s - 1) t)`` (arXiv
    2403.03206, section 5.3.2); ``teacher_shift`` is that of the base model's own sampling, where it
    is another. The consistency function needs no constants: ``x0(z, 0) = z``.
    """

    shift: float = 1.0
    prediction: str = FLOW
    teacher_shift: float | None = None

    @property
    def teacher(self: F) -> F:
        return self if self.teacher_shift is None else replace(self, shift=self.teacher_shift)

    def shifted(self, even: Tensor) -> Tensor:
        return self.shift * even / (1 + (self.shift - 1) * even)

    def unshifted(self, level: Any) -> Any:
        """The inverse of `shifted`, also of numbers."""
        return level / (self.shift - (self.shift - 1) * level)

    def model_time(self, level: Tensor) -> Tensor:
        return TRAIN_TIMESTEPS * level

    def alpha_sigma(
        self, level: Tensor, ndim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        sigma = level.to(dtype).reshape(-1, *[1] * (ndim - 1))
        return 1 - sigma, sigma

    def steadiness(self, level: Tensor, ndim: int) -> Tensor:
        return 1 / self.alpha_sigma(level, ndim)[1]

    def add_noise(self: NoisePath, x0: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        x0, eps, alpha, sigma = prepare(self, x0, eps, level)
        return alpha * x0 + sigma * eps

    def read(self: NoisePath, z: Tensor, output: Tensor, level: Tensor) -> Reading:
        z, output, alpha, sigma = prepare(self, z, output, level)
        return Reading(z - sigma * output, z + alpha * output)

    def consistency(self, z: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        return x0

    def bounded(self: F, timestep_scaling: float, sigma_data: float) -> F:
        return self

    def to(self: F, device: torch.device | str) -> F:
        return self


@dataclass(frozen=True)
class RectifiedFlow(Flow, Whole):
    """A whole `Flow`, from pure noise to the clip."""

    end: ClassVar[float] = 0
    places: ClassVar[int] = FLOW_STEPS

    @property
    def config(self) -> dict[str, Any]:
        return {"shift": self.shift}

    def levels(self, count: int) -> Tensor:
        check_count(count)
        return self.shifted(torch.arange(1, count + 1) / count)

    def few_steps(self, steps: int, places: int) -> Tensor:
        """As `NoisePath.few_steps`: the numbers of ComfyUI's scheduler ``simple``, which takes them
        from 1000 levels and rounds as here; they do not depend on ``places``.
        """
        return self.shifted(simple_shares(steps))

    def share(self, level: Tensor) -> Tensor:
        """As `NoisePath.share`: ``level`` before the shift."""
        return self.unshifted(level)


def check_count(count: int) -> None:
    """Raise ValueError for a number of levels that is none."""
    if count < 1:
        raise ValueError(f"`count`={count} noise levels; use 1 or more.")


def simple_shares(steps: int) -> Tensor:
    """The levels (steps,), before the shift, of ComfyUI's scheduler ``simple``."""
    check_steps(steps, TRAIN_TIMESTEPS)
    passed = [int(step * (TRAIN_TIMESTEPS / steps)) for step in range(steps)]
    return (TRAIN_TIMESTEPS - torch.tensor(passed)) / TRAIN_TIMESTEPS


def boundary_scalings(
    t: Tensor, timestep_scaling: float = TIMESTEP_SCALING, sigma_data: float = SIGMA_DATA
) -> tuple[Tensor, Tensor]:
    """LCM's ``(c_skip, c_out)``, each float32 of the shape of the timesteps ``t``.

    With ``s = timestep_scaling t``: ``c_skip = sigma_data^2 / (s^2 + sigma_data^2)`` and
    ``c_out = s / sqrt(s^2 + sigma_data^2)``. At ``t`` = 0 they are 1 and 0; -1, the clean end,
    counts as 0.
    """
    scaled = t.clamp(min=0).float() * timestep_scaling
    power = scaled**2 + sigma_data**2
    return sigma_data**2 / power, scaled / power.sqrt()


def guided(cond: Tensor, uncond: Tensor, w: float | Tensor) -> Tensor:
    """Guidance of a network's outputs as LCM writes it: ``c + w (c - u)``, (B, C, F, h, w).

    ``w`` is a number or a tensor (B,). It equals a usual CFG scale of ``w + 1``; 0 means no
    guidance.
    """
    if isinstance(w, Tensor):
        w = w.to(cond.dtype).reshape(-1, *[1] * (cond.ndim - 1))
    return cond + w * (cond - uncond)


def few_step_places(steps: int, count: int = TRAJECTORY_STEPS) -> Tensor:
    """Which of ``count`` ascending levels sampling in ``steps`` steps calls the model at: (steps,)
    int64, from most noise down. They are `LCMScheduler.set_timesteps`'s own choice.

    Raises ValueError if ``steps`` is not within 1 .. ``count``.
    """
    check_steps(steps, count)
    return torch.tensor(_lcm_places(steps, count))


@functools.cache
def _lcm_places(steps: int, count: int) -> tuple[int, ...]:
    from diffusers import LCMScheduler

    scheduler: Any = LCMScheduler(num_train_timesteps=count, original_inference_steps=count)
    scheduler.set_timesteps(steps)
    return tuple(int(place) for place in scheduler.timesteps)


def check_steps(steps: int, most: int) -> None:
    """Refuse a number of sampling steps outside 1 .. ``most``.

    Raises ValueError naming the value and the range.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"`steps`={steps!r} is not a number of sampling steps; use 1 to {most}.")
