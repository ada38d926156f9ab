"""Learned motion heads, and one object for every kind of representation.

MCM (arXiv 2406.06890, section 3.2) learns a small head together with the student and gives the
target a slow copy of it. The head does not mix frames, so nothing prevents it from collapsing to a
constant, which makes its loss zero: watch `MotionRepresentation.target_variance`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor, nn

from .representations import REPRESENTATIONS, as_full_precision, of_one_kind, raw

EMA_DECAY = 0.95
HIDDEN_CHANNELS = 64
VARIANCE_FLOOR = 1e-12


class MotionRepresentation(Protocol):
    """The interface of a representation, fixed or learned, in the training step."""

    name: str

    def student(self, latents: Tensor) -> Tensor:
        """Representation of predicted latents (B, C, F, h, w), with gradients."""
        ...

    def target(self, latents: Tensor) -> Tensor:
        """Representation of the target (B, C, F, h, w), no gradients; by the EMA head if any."""
        ...

    def target_variance(self, latents: Tensor) -> Tensor:
        """Variance of `target` over that of the latents, 0-d; 1 if ``raw``, 0 if collapsed."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains; empty for a fixed representation."""
        ...

    def update_ema(self) -> None:
        """Move the target's head towards the student's; once after each optimizer step."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, with the keys ``head.*`` and ``ema.*``; empty if fixed."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict`'s result; a ValueError if it belongs to another representation."""
        ...

    def to(self, device: torch.device | str) -> MotionRepresentation:
        """Move the heads in place."""
        ...


class MotionHead(nn.Module):
    """``x + f(x)`` on every frame by itself, ``f`` a stack of convolutions with SiLU between.

    The last layer starts at zero, so that the head starts as the identity (the ``raw``
    representation). Weights and arithmetic are float32 also under autocast.
    """

    def __init__(
        self, channels: int, layers: int, kernel_size: int, hidden: int, generator: torch.Generator
    ):
        super().__init__()
        widths = [channels, *[hidden] * (layers - 1), channels]
        convolutions = []
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            # skip_init: the usual constructor would draw from the global generator.
            conv = nn.utils.skip_init(
                nn.Conv2d, inputs, outputs, kernel_size, padding=kernel_size // 2
            )
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(conv.bias)
            convolutions.append(conv)
        nn.init.zeros_(convolutions[-1].weight)
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, C, F, h, w) float32."""
        batch, channels, frames, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            x = latents.float()
            y = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
            for index, conv in enumerate(self.convolutions):
                y = conv(nn.functional.silu(y) if index else y)
            y = y.reshape(batch, frames, channels, height, width).transpose(1, 2)
            return x + y


class HeadEma:
    """A slow copy of a head: ``copy <- decay copy + (1 - decay) head`` at each `update`."""

    def __init__(self, head: nn.Module, decay: float = EMA_DECAY):
        if not 0 <= decay < 1:
            raise ValueError(f"`ema_decay`={decay} must be at least 0 and below 1; MCM uses 0.95.")
        self.decay = decay
        self.module = deepcopy(head).requires_grad_(False)

    @torch.no_grad()
    def update(self, head: nn.Module) -> None:
        """One step towards the parameters of ``head``."""
        for slow, fast in zip(self.module.parameters(), head.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.decay)


class FixedRepresentation:
    """A function of `REPRESENTATIONS` as a `MotionRepresentation`.

    It compares latents of one kind only (see `of_one_kind`). Where there is just one of them there
    is nothing to compare it with: then that one is its own representation, and holds the motion of
    its frames. ``raw`` compares no latent with another, and takes all.
    """

    def __init__(self, name: str, function: Callable[[Tensor], Tensor], lead: int = 0):
        self.name, self.function = name, function
        self.lead = 0 if function is raw else lead

    def student(self, latents: Tensor) -> Tensor:
        alike = of_one_kind(latents, self.lead)
        return raw(alike) if self.lead and alike.shape[2] == 1 else self.function(alike)

    @torch.no_grad()
    def target(self, latents: Tensor) -> Tensor:
        return self.student(latents)

    def target_variance(self, latents: Tensor) -> Tensor:
        return _relative_variance(self.target(latents), latents)

    def parameters(self) -> list[nn.Parameter]:
        return []

    def update_ema(self) -> None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _check_keys(self.name, state, self.state_dict())

    def to(self, device: torch.device | str) -> FixedRepresentation:
        return self


class LearnedRepresentation:
    """A `MotionHead` for the student, its `HeadEma` for the target, as a `MotionRepresentation`."""

    def __init__(self, name: str, head: MotionHead, ema_decay: float = EMA_DECAY):
        self.name = name
        self.head = head
        self.ema = HeadEma(head, ema_decay)

    def student(self, latents: Tensor) -> Tensor:
        return self.head(latents)

    @torch.no_grad()
    def target(self, latents: Tensor) -> Tensor:
        return self.ema.module(latents)

    def target_variance(self, latents: Tensor) -> Tensor:
        return _relative_variance(self.target(latents), latents)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def update_ema(self) -> None:
        self.ema.update(self.head)

    def state_dict(self) -> dict[str, Tensor]:
        heads = {"head": self.head, "ema": self.ema.module}
        return {f"{k}.{n}": v for k, head in heads.items() for n, v in head.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        _check_keys(self.name, state, own)
        for key, tensor in own.items():  # views of the parameters themselves
            tensor.copy_(state[key])

    def to(self, device: torch.device | str) -> LearnedRepresentation:
        self.head.to(device)
        self.ema.module.to(device)
        return self


LEARNED_LAYERS: dict[str, tuple[int, int]] = {"learned": (2, 1), "learned_deep": (5, 3)}
"""Learned heads by name: number of layers and kernel size in latent cells."""


def representation_names() -> tuple[str, ...]:
    """Every name that `build_representation` knows."""
    return (*REPRESENTATIONS, *LEARNED_LAYERS)


def build_representation(
    name: str,
    channels: int,
    *,
    lead: int = 0,
    hidden: int = HIDDEN_CHANNELS,
    ema_decay: float = EMA_DECAY,
    seed: int = 0,
) -> MotionRepresentation:
    """The representation ``name`` for latents of ``channels`` channels, the first ``lead`` of a
    clip of another kind than the rest, on the CPU.

    ``hidden`` (channels), ``ema_decay`` and ``seed`` (of the head's initial weights) concern
    learned heads.

    Raises ValueError for an unknown ``name``, or an ``ema_decay`` outside [0, 1).
    """
    if name in REPRESENTATIONS:
        return FixedRepresentation(name, REPRESENTATIONS[name], lead)
    if name not in LEARNED_LAYERS:
        raise ValueError(
            f"`motion_representation`={name!r} is unknown; use {', '.join(representation_names())}."
        )
    layers, kernel_size = LEARNED_LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    head = MotionHead(channels, layers, kernel_size, hidden, generator)
    return LearnedRepresentation(name, head, ema_decay)


def _relative_variance(features: Tensor, latents: Tensor) -> Tensor:
    own = as_full_precision(latents.detach()).var(correction=0)
    return features.var(correction=0) / (own + VARIANCE_FLOOR)


def _check_keys(name: str, got: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    mine = {key: tuple(tensor.shape) for key, tensor in own.items()}
    theirs = {key: tuple(tensor.shape) for key, tensor in got.items()}
    if mine != theirs:
        wrong = sorted(k for k in mine | theirs if mine.get(k) != theirs.get(k))
        raise ValueError(
            f"this state is not one of the motion representation {name!r}: {wrong[:4]} are missing "
            "or have another shape; resume with the `motion_representation` that the run began "
            "with."
        )
