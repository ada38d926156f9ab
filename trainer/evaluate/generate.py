"""Clips of a model for measuring: prompts in, pixels out, one fixed seed per clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..diffusion.sampling import SAMPLERS
from ..families.base import VideoModel, clips_at_once
from ..lora.adapter import adapter_disabled
from ..models.sound import check_latents, check_pixels

LATER_SEEDS = 1 << 32
"""Added to the seeds of clips that begin with states, which hold noise of the same seeds."""
Progress = Callable[[int, int], None]
"""Called with ``(clips done, clips in all)`` after every batch."""


@torch.no_grad()
def generate_clips(
    model: VideoModel,
    prompts: Sequence[str],
    *,
    sampler: str = "lcm",
    steps: int = 4,
    guidance_scale: float = 1.0,
    negative_prompt: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    size: tuple[int, int, int] | None = None,
    lora: bool = True,
    progress: Progress | None = None,
    between: Callable[[], None] = lambda: None,
    quick: bool = False,
    starts: Tensor | None = None,
    states: bool = False,
    **options: Any,
) -> Tensor:
    """One clip per prompt: float32 pixels (N, 3, F, H, W) in [-1, 1] on the CPU.

    Clip i is made from seed ``seed + i``, so it is the same whatever the batch size and the same
    noise in every sampler. ``batch_size`` is as large as `clips_at_once` says by default. ``size``
    is (frames, height, width), the model's own by default. ``lora`` False switches an adapter of a
    model in training off: that is the teacher. ``between`` is called before every pass through the
    network and may raise, to end it there. ``quick`` decodes as previews are. Clips begin with the
    states ``starts`` (N, C, f, h, w) where they do not begin with noise. Of a model whose
    trajectories end in states with noise, its clean guess at those is shown, without an adapter;
    with ``states``, these latents (N, C, f, h, w) come back themselves, on the model's device.
    ``options`` go to the sampler. Guidance takes ``negative_prompt``, by default the model's own.

    Raises ``ValueError`` for an unknown sampler, no prompts, or a size the model cannot make, and
    its `BrokenOutputError` for NaN or flat frames.
    """
    _check(sampler, prompts, batch_size)
    shape = model.latent_shape(*(size or (model.frames, model.height, model.width)))
    batch_size = batch_size or clips_at_once(shape)
    if guidance_scale != 1.0:
        negative = model.negative if negative_prompt is None else negative_prompt
        options["negative_text"] = model.encode_text([negative])

    def predict(*tensors: Tensor) -> Tensor:
        between()
        return model.predict(*tensors)

    sample = partial(
        SAMPLERS[sampler], predict, model.noise, steps=steps, guidance_scale=guidance_scale
    )
    clips: list[Tensor] = []
    with nullcontext() if lora else adapter_disabled(model.network):
        for start in range(0, len(prompts), batch_size):
            text = model.encode_text(list(prompts[start : start + batch_size]))
            first = seed + start + (0 if starts is None else LATER_SEEDS)
            seeds = range(first, first + len(text))
            if starts is not None:
                options["init_latents"] = starts[start : start + len(text)]
            latents = sample(text, (len(text), *shape), seed=seeds, **options)
            clips.append(latents if states else _decoded(model, latents, text, quick))
            if progress is not None:
                progress(start + len(text), len(prompts))
    return torch.cat(clips)


@torch.no_grad()
def decode_states(
    model: VideoModel, states: Tensor, prompts: Sequence[str], quick: bool = False
) -> Tensor:
    """What `generate_clips` gives without ``states``, of those (N, C, f, h, w) it gives with them.

    Raises `BrokenOutputError` for NaN or flat frames.
    """
    text = model.encode_text(list(prompts))
    states = states.to(text.device, torch.float32)
    pairs = zip(states.split(1), text.split(1), strict=True)
    return torch.cat([_decoded(model, *pair, quick) for pair in pairs])


def _clean(model: VideoModel, latents: Tensor, text: Tensor) -> Tensor:
    """The clips that the base model sees in ``latents`` at the end of a sampling run."""
    path = model.noise
    if not path.lowest:
        return latents
    level = torch.full((len(latents),), path.lowest, device=latents.device)
    with adapter_disabled(model.network):
        return path.read(latents, model.predict(latents, level, text), level).x0


def _decoded(model: VideoModel, latents: Tensor, text: Tensor, quick: bool) -> Tensor:
    latents = _clean(model, latents, text)
    check_latents(latents, model.network)
    pixels = model.decode_clips(latents, quick).float().cpu()
    check_pixels(pixels, model.codec.quick.vae if quick else model.codec.vae)
    return pixels


def _check(sampler: str, prompts: Sequence[str], batch_size: int | None) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler`={sampler!r} is not known; use {', '.join(SAMPLERS)}.")
    if not prompts or (batch_size is not None and batch_size < 1):
        raise ValueError(
            f"Got {len(prompts)} prompts and `batch_size`={batch_size}; both must be 1 or more."
        )
