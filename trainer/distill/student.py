"""What a training step computes with: teacher and student in one network, and the networks that
judge frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adversarial.features import FeatureNetwork
from ..adversarial.heads import Discriminator
from ..adversarial.reader import ClipReader
from ..config import TrainConfig
from ..diffusion.noise import guided
from ..families.base import VideoModel
from ..families.codec import VideoCodec
from ..lora.adapter import adapter_disabled, lora_parameters
from ..motion.learned import MotionRepresentation


@dataclass
class Student:
    """A base model whose network carries the adapter being trained; without it, it is the teacher.

    Latents are (B, C, f, h, w) everywhere, levels (B,), texts (B, L, D).
    """

    model: VideoModel

    def predict(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """``f(z, t, c)``, the student's consistency function (paper, eq. 3); differentiable."""
        path = self.model.noise
        output = self.model.predict(latents, level, text)
        return path.consistency(latents, path.read(latents, output, level).x0, level)

    @torch.no_grad()
    def target(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """``stopgrad f(z, t, c)`` with the student's present weights."""
        return self.predict(latents, level, text)

    @torch.no_grad()
    def generate(self, noise: Tensor, most: Tensor, text: Tensor) -> Tensor:
        """A prediction from pure noise, at the level ``most``: the start of a generated trajectory
        (paper, sec. 3.3).
        """
        return self.predict(noise, most, text)

    @torch.no_grad()
    def teacher_step(
        self,
        latents: Tensor,
        level: Tensor,
        following: Tensor,
        text: Tensor,
        empty: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """One guided step of the teacher from ``level`` to ``following``; ``empty`` (1, L, D).

        ``guidance`` (B,) is LCM's w, a usual CFG scale of w + 1. Both halves run as one batch.
        """
        both = torch.cat([text, empty.expand_as(text)])
        with adapter_disabled(self.model.network):
            output = self.model.predict(latents.repeat(2, 1, 1, 1, 1), level.repeat(2), both)
        cond, uncond = output.chunk(2)
        path = self.model.noise
        reading = path.read(latents, guided(cond, uncond, guidance), level)
        return path.add_noise(*reading, following)


@dataclass
class StepParts:
    """The networks of a step and its settings. ``discriminator`` and ``features`` are None when the
    adversarial weight is 0, ``reader`` is the CLIP of the caption loss, None without one.
    """

    config: TrainConfig
    student: Student
    decoder: VideoCodec
    representation: MotionRepresentation
    features: FeatureNetwork | None
    reader: ClipReader | None
    discriminator: Discriminator | None

    @property
    def model(self) -> VideoModel:
        return self.student.model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return lora_parameters(self.model.network)
