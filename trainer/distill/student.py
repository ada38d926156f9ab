"""What a training step computes with: teacher and student in one network, the networks that judge
frames, and the number types of each.

Frozen weights are in half precision, trained ones in fp32. There is no autocast. It would turn
every normalisation of the network to fp32 and keep those copies for the gradient, and it would
round the network's last convolution, which stays fp32 on purpose.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
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
        """What a prediction leads to from pure noise, or from where trajectories begin, at the
        level ``most``: the start of a generated trajectory (paper, sec. 3.3).
        """
        return self.model.noise.landing(noise, self.predict(noise, most, text), most)

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


END = -1
"""Stands for the end of a trajectory among its places."""


@torch.no_grad()
def roll_out(
    student: Student,
    texts: list[str],
    noise: Tensor,
    *,
    guidance: float,
    levels: Tensor,
    visited: Sequence[int],
    kept: Sequence[int],
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Guided DDIM rollouts of the teacher for ``texts`` (N) from ``noise`` (N, C, F, h, w), or from
    the states that its trajectories begin with, in one
    pass: the states (N, K + 1, C, F, h, w) of a `TrajectoryLibrary`.

    ``guidance`` is LCM's w. Of the ascending ``levels`` (T,) those at the places ``visited`` are
    taken; their states at the places ``kept`` (K) come back, the end before them. ``between`` is
    called before every step and may raise. Raises FloatingPointError if the teacher gives NaN or
    infinity.
    """
    model = student.model
    end = torch.full_like(levels[:1], model.noise.lowest)
    falling = torch.cat([end, levels[list(visited)]]).flip(0)
    latents, falling = noise.to(model.device), falling.to(model.device)
    text, empty = model.encode_text(texts), model.encode_text([model.negative])
    scale = torch.full((len(texts),), guidance, device=model.device)
    states = {visited[-1]: noise.half().cpu()}
    below = [END, *visited[:-1]][::-1]
    for place, level, following in zip(below, falling[:-1], falling[1:], strict=True):
        between()
        now, then = level.expand(len(texts)), following.expand(len(texts))
        latents = student.teacher_step(latents, now, then, text, empty, scale)
        if place in (END, *kept):
            states[place] = latents.half().cpu()
    found = torch.stack([states[place] for place in (END, *kept)], dim=1)
    if not found.isfinite().all():
        raise FloatingPointError(
            f"The teacher's rollout at guidance {guidance} is not finite; lower "
            "`data.library_guidance` or use fp32."
        )
    return found


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


class ParameterEma:
    """A slow fp32 copy of ``parameters``.

    ``copy <- decay copy + (1 - decay) parameter`` at each `update`. ``device`` is where the copies
    are kept, by default with the parameters.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decay: float,
        device: torch.device | str | None = None,
    ):
        self.parameters = list(parameters)
        self.decay = decay
        self.copies = [
            p.detach().to(device or p.device, torch.float32, copy=True) for p in self.parameters
        ]

    @torch.no_grad()
    def update(self) -> None:
        for copy, parameter in zip(self.copies, self.parameters, strict=True):
            copy.lerp_(parameter.to(copy.device, torch.float32), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average; the trained values come back afterwards."""
        kept = [p.detach().clone() for p in self.parameters]
        self._write(self.copies)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{index:04d}": copy for index, copy in enumerate(self.copies)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if len(state) != len(self.copies):
            raise ValueError(
                f"The stored average has {len(state)} tensors, this adapter {len(self.copies)}; "
                "resume with the run's config."
            )
        for key, copy in zip(sorted(state), self.copies, strict=True):
            copy.copy_(state[key])


GRADIENT_PEAK = 2.0**-4
"""Largest gradient at the prediction that is sent through an fp16 UNet. fp16 ends at 2^16 and loses
bits below 2^-14; a mean over a clip leaves gradients of 1e-6."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def base_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the frozen base model for a setting; "auto" is bf16 on cards that have it."""
    if precision == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable else torch.float32
    return _DTYPES[precision]


def decoder_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the decoder in training steps; "auto" is bf16 where the device computes in it."""
    if precision == "auto":
        on_card = device.type == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if on_card or on_cpu else torch.float32
    return _DTYPES[precision]


def compute_lora_in_input_dtype(unet: nn.Module) -> int:
    """Let LoRA layers cast their small fp32 weights to the input's type; returns their number.

    PEFT casts the input to the weights' type instead: fp32 copies of every activation, kept for the
    gradient, and arithmetic at a sixteenth of a card's speed. Gradients still arrive in fp32.
    """
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
        for part in (*layer.lora_A.values(), *layer.lora_B.values()):
            part.forward = functools.partial(_cast_weight, part)
    return len(layers)


def _cast_weight(part: Any, x: Tensor) -> Tensor:
    """Forward of a bias-free Linear or Conv2d in the type of ``x``."""
    weight = part.weight.to(x.dtype)
    if isinstance(part, nn.Conv2d):
        return part._conv_forward(x, weight, None)
    return F.linear(x, weight)


def order_channels_last(network: nn.Module) -> None:
    """Store the weights of 2-D convolutions with their channels last, in place.

    `Module.to(memory_format=...)` stops at the first Conv3d, whose weights have five axes.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def gradient_scale(gradient: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Power of two, 0-d, that brings ``gradient`` into fp16's range; None where none is needed.

    Taken from the gradient itself, so it needs no search over steps and no wait for the host.
    Powers of two change no bits.
    """
    if dtype != torch.float16:
        return None
    peak = gradient.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.exp2(torch.floor(torch.log2(GRADIENT_PEAK / peak)).clamp(-24, 40))
