"""The variance-preserving noise schedule and the eps / x0 / v conversions.

``z_t = alpha_t x0 + sigma_t eps`` with ``alpha_t = sqrt(alphas_cumprod[t])`` and
``sigma_t = sqrt(1 - alphas_cumprod[t])`` (DDPM eq. 4, arXiv 2006.11239). Timesteps are integers
``0 .. train_timesteps - 1``; ``-1`` stands for the clean end of the trajectory.

Arithmetic is done in float32, or float64 when an input is float64: half precision comes back as
float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

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

PREDICTIONS = ("epsilon", "v_prediction")
"""Values of ``prediction_type`` that can be read: noise, or the velocity of arXiv 2202.00512."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of a base model.

    ``alphas_cumprod`` (T,) float32, decreasing, T = 1000 for every known base model.
    ``final_alpha_cumprod`` is the level of timestep -1: 1, or ``alphas_cumprod[0]`` where the base
    model's config says ``set_alpha_to_one: false``.
    ``config`` holds `SCHEDULE_KEYS`, every one explicit, for building diffusers schedulers that
    agree.
    """

    alphas_cumprod: Tensor
    final_alpha_cumprod: float = 1.0
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if alphas.ndim != 1 or alphas.dtype != torch.float32:
            raise ValueError(
                f"`alphas_cumprod` must be one-dimensional float32, got {tuple(alphas.shape)} "
                f"{alphas.dtype}; build it with `NoiseSchedule.from_config`."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Schedule of a ``scheduler_config.json``, computed by diffusers' `DDIMScheduler`.

        The defaults of the scheduler classes differ (linear or scaled_linear betas), so a config
        that leaves them to the class is refused.

        Raises:
            ValueError: the betas are not given, their schedule is unknown to diffusers, or the
                network predicts something else than `PREDICTIONS`.
        """
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
        return cls(
            scheduler.alphas_cumprod.float(),
            float(scheduler.final_alpha_cumprod),
            resolved,
            prediction,
        )

    @property
    def train_timesteps(self) -> int:
        """Number of training timesteps T."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """A copy with its table on ``device``; timesteps given to it must be there too."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def alpha_sigma(
        self, t: Tensor, ndim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """``(alpha_t, sigma_t)`` of integer timesteps ``t`` (B,) or (), shaped to broadcast.

        Returns:
            two tensors ``(B, 1, ..., 1)`` with ``ndim`` axes (``(1, ..., 1)`` for a 0-d ``t``).

        Raises:
            ValueError: ``t`` is not an integer tensor of at most one axis.
        """
        if t.ndim > 1 or t.is_floating_point() or t.dtype == torch.bool:
            raise ValueError(
                f"`t` must be integer timesteps of shape (B,), got {tuple(t.shape)} {t.dtype}; "
                "use torch.long."
            )
        # No check of the range: it would make a GPU wait for the host in every call.
        inside = self.alphas_cumprod[t.clamp(min=0)]
        level = torch.where(t < 0, torch.full_like(inside, self.final_alpha_cumprod), inside)
        level = level.to(dtype).reshape(-1, *[1] * (ndim - 1))
        return level.sqrt(), (1 - level).sqrt()

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``z_t`` (B, C, F, h, w) of clean latents and noise of that shape, at ``t`` (B,)."""
        x0, eps, alpha, sigma = self._prepare(x0, eps, t)
        return alpha * x0 + sigma * eps

    def x0_from_eps(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``x0 = (z_t - sigma eps) / alpha``, (B, C, F, h, w).

        Not finite where alpha is 0: the last timestep of a ``rescale_betas_zero_snr`` schedule.
        """
        latents, eps, alpha, sigma = self._prepare(latents, eps, t)
        return (latents - sigma * eps) / alpha

    def eps_from_x0(self, latents: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """``eps = (z_t - alpha x0) / sigma``, (B, C, F, h, w); not finite where sigma is 0."""
        latents, x0, alpha, sigma = self._prepare(latents, x0, t)
        return (latents - alpha * x0) / sigma

    def v_from_x0_eps(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``v = alpha eps - sigma x0`` (arXiv 2202.00512, appendix D), (B, C, F, h, w)."""
        x0, eps, alpha, sigma = self._prepare(x0, eps, t)
        return alpha * eps - sigma * x0

    def x0_from_v(self, latents: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """``x0 = alpha z_t - sigma v``, (B, C, F, h, w)."""
        latents, v, alpha, sigma = self._prepare(latents, v, t)
        return alpha * latents - sigma * v

    def eps_from_v(self, latents: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """``eps = alpha v + sigma z_t``, (B, C, F, h, w)."""
        latents, v, alpha, sigma = self._prepare(latents, v, t)
        return alpha * v + sigma * latents

    def eps_from_output(self, latents: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise (B, C, F, h, w) that a network's ``output`` at ``latents`` stands for."""
        if self.prediction == "v_prediction":
            return self.eps_from_v(latents, output, t)
        return output

    def _prepare(self, a: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if a.shape != b.shape:
            raise ValueError(
                f"the two tensors must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}."
            )
        if t.ndim == 1 and len(t) not in (1, len(a)):
            raise ValueError(
                f"`t` has {len(t)} timesteps for a batch of {len(a)}; give one timestep a video."
            )
        dtype = functools.reduce(torch.promote_types, (a.dtype, b.dtype), torch.float32)
        alpha, sigma = self.alpha_sigma(t, a.ndim, dtype)
        return a.to(dtype), b.to(dtype), alpha, sigma
