"""Teacher and student in one UNet: the adapter switched off and on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.consistency import consistency_function
from ..diffusion.solver import ddim_step, guided_eps
from ..families.base import VideoModel
from ..lora.adapter import adapter_disabled


@dataclass
class Student:
    """A base model whose UNet carries the adapter being trained.

    Latents are (B, C, F, h, w) everywhere.
    """

    model: VideoModel
    timestep_scaling: float = 4.0
    sigma_data: float = 0.5

    def predict(self, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """``f(z_t, t, c)``.

        The consistency function of the student (paper, eq. 3); differentiable.
        """
        eps = self.model.predict_eps(latents, t, text)
        schedule = self.model.schedule
        return consistency_function(
            latents, eps, t, schedule, self.timestep_scaling, self.sigma_data
        )

    @torch.no_grad()
    def target(self, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """``stopgrad f(z_t, t, c)`` with the student's present weights."""
        return self.predict(latents, t, text)

    @torch.no_grad()
    def generate(self, noise: Tensor, text: Tensor) -> Tensor:
        """One-step prediction from pure noise, the start of a generated trajectory (paper, sec.

        3.3).
        """
        last = self.model.schedule.train_timesteps - 1
        t = torch.full((len(noise),), last, dtype=torch.long, device=noise.device)
        return self.predict(noise, t, text)

    @torch.no_grad()
    def teacher_step(
        self,
        latents: Tensor,
        t_from: Tensor,
        t_to: Tensor,
        text: Tensor,
        empty: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """One guided DDIM step of the teacher from ``t_from`` to ``t_to`` (B,); ``empty`` (1, L,
        D).

        ``guidance`` (B,) is LCM's w, a usual CFG scale of w + 1. Both halves run as one batch.
        """
        both = torch.cat([text, empty.expand_as(text)])
        with adapter_disabled(self.model.unet):
            eps = self.model.predict_eps(latents.repeat(2, 1, 1, 1, 1), t_from.repeat(2), both)
        cond, uncond = eps.chunk(2)
        guided = guided_eps(cond, uncond, guidance)
        schedule = self.model.schedule
        return ddim_step(schedule.x0_from_eps(latents, guided, t_from), guided, t_to, schedule)
