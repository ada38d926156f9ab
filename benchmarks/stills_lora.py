"""A plain style LoRA, as it is trained today: the base model's own loss on clips of one frame.

ai-toolkit, musubi-tuner and diffusion-pipe train a video model on a folder of images so: each image
is a clip of a single frame with its caption, noise is put on its latent, and the network learns to
predict what it was trained to predict. Layers, rank, optimizer and batch are those of the students
that it is compared with; the base model may have a step LoRA merged into it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.data.images import ImageSet, scan_images
from trainer.diffusion.noise import TRAIN_TIMESTEPS
from trainer.distill.loop import make_accelerator
from trainer.distill.optimizers import build_optimizer, rate_factor
from trainer.distill.student import ParameterEma, base_dtype, compute_lora_in_input_dtype
from trainer.families import load_model
from trainer.families.base import VideoModel
from trainer.lora.adapter import add_lora, apply_lora, lora_parameters, lora_state
from trainer.lora.export import export_file
from trainer.lora.formats import read_lora

STEPS_TAKEN = "stills.steps"
"""Metadata of the LoRA: the number of training steps."""
ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class Stills:
    """The images of a folder as clips of one frame: ``latents`` (N, C, 1, h, w), a caption each."""

    images: ImageSet
    latents: Tensor
    captions: list[str]

    @classmethod
    def read(cls, config: TrainConfig, model: VideoModel) -> Stills:
        """All images of ``config.images``, cropped in the middle to the size of the run's clips.

        Errors as `scan_images`.
        """
        assert config.images is not None
        folder = scan_images(
            config.images,
            min_side=config.data.min_side,
            trigger=config.trigger,
            prompt_template=config.prompt_template,
            background=config.data.background,
        )
        size = config.data.height or model.height, config.data.width or model.width
        images = ImageSet(folder, *size)
        latents: list[Tensor] = []
        captions: list[str] = []
        with torch.no_grad():
            for start in range(0, len(images), ENCODED_AT_ONCE):
                rows = range(start, min(start + ENCODED_AT_ONCE, len(images)))
                pixels, said = images.batch(rows)
                latents.append(model.encode_clips(pixels[:, :, None].to(model.device)))
                captions += said
        return cls(images, torch.cat(latents), captions)


@dataclass(frozen=True)
class Drawn:
    """A batch: ``latents`` and ``noise`` (B, C, 1, h, w), ``level`` (B,), ``text`` (B, L, D)."""

    latents: Tensor
    noise: Tensor
    level: Tensor
    text: Tensor


def draws(stills: Stills, model: VideoModel, batch: int, seed: int) -> Iterator[Drawn]:
    """Batches without end: any image, any of the levels at which the base model is sampled in a
    thousand steps. ``seed`` decides them whatever the device.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    levels, device = model.noise.teacher.levels(TRAIN_TIMESTEPS), model.device
    while True:
        rows = stills.images.draw(batch, rng)
        chosen = torch.randint(len(levels), (batch,), generator=generator)
        latents = stills.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        text = model.encode_text([stills.captions[row] for row in rows])
        yield Drawn(latents, noise.to(device), levels[chosen].to(device), text)


def denoising_loss(model: VideoModel, drawn: Drawn) -> Tensor:
    """Mean squared error of the network's output, whatever it predicts: noise or a velocity.

    That of the clip it stands for, divided by how much an error of the output counts in it.
    """
    path, clean = model.noise, drawn.latents
    point = path.add_noise(clean, drawn.noise, drawn.level)
    read = path.read(point, model.predict(point, drawn.level, drawn.text), drawn.level)
    return ((read.x0 - clean) * path.steadiness(drawn.level, clean.ndim)).square().mean()


def open_model(config: TrainConfig, merged: Sequence[Path] = ()) -> VideoModel:
    """The base model of ``config`` on its device, the LoRAs ``merged`` in its weights, and an
    untrained LoRA on the layers that a student trains.
    """
    device = make_accelerator(config).device
    model = load_model(config.model, base_dtype("auto", device), **config.companions).to(device)
    for path in merged:
        found = read_lora(path, model.network)
        apply_lora(model.network, found.pairs, differences=found.differences, for_good=True)
    add_lora(model.network, config.lora.rank, float(config.lora.rank), config.seed)
    compute_lora_in_input_dtype(model.network)
    return model


def train_stills(config: TrainConfig, file: Path, merged: Sequence[Path] = ()) -> int:
    """Train a LoRA on ``config.images`` for the steps or the minutes of ``config``, whichever ends
    first, and write it to ``file``; the number of steps.

    Minutes are those of training steps, as in a run: reading and encoding do not count. Raises
    FloatingPointError when the loss is not finite.
    """
    model = open_model(config, merged)
    trained = lora_parameters(model.network)
    average = ParameterEma(trained, config.optim.ema_decay)
    steps = _train(config, model, trained, average)
    with average.applied():
        pairs = lora_state(model.network)
    export_file(pairs, file, {STEPS_TAKEN: str(steps)}, base=model.network)
    return steps


def _train(
    config: TrainConfig, model: VideoModel, trained: list[nn.Parameter], average: ParameterEma
) -> int:
    optim, accumulation = config.optim, config.optim.accumulation
    optimizer = build_optimizer(optim, [{"params": trained}])
    stills = Stills.read(config, model)
    model.encode_text(list(dict.fromkeys(stills.captions)))  # remembered: no step waits for them
    batches = draws(stills, model, config.data.batch_size, config.seed)
    step, seconds, done = 0, 0.0, 0.0
    while done < 1:
        begun = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(accumulation):
            loss = denoising_loss(model, next(batches)) / accumulation
            loss.backward()
        if not loss.isfinite():
            raise FloatingPointError(
                f"The plain LoRA's loss is not finite at step {step}; lower `optim.lr`."
            )
        nn.utils.clip_grad_norm_(trained, optim.grad_clip or torch.inf)
        optimizer.param_groups[0]["lr"] = optim.lr * rate_factor(optim, step, done)
        optimizer.step()
        average.update()
        step, seconds = step + 1, seconds + time.monotonic() - begun
        by_time = 0.0 if config.minutes is None else seconds / (60 * config.minutes)
        done = max(step / config.steps, by_time)
    return step
