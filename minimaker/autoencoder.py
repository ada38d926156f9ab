"""The mini model's autoencoder: TAESD's architecture, so that ComfyUI's own VAE object loads it.

Latents are (B, 4, 8, 8) for 64-pixel frames with unit variance per channel (``scaling_factor`` 1),
kept there by a penalty on the batch moments; noise on the latents in training makes the decoder
forgiving.

The network starts as an exact mean-colour codec (``initialise``): from the usual random start it
had learned no colour at all after 500 steps, and latents that begin as small pictures are easy to
diffuse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from trainer.mini.words import SIZE

from .looks import Look, random_frame
from .stage import half_precision, run_stage
from .world import random_scene

BATCH = 8
LATENT_NOISE = 0.05
CONTRAST = 4.0


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 frames (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def moment_penalty(latents: torch.Tensor) -> torch.Tensor:
    """KL divergence of each channel's batch moments to N(0, 1), averaged.

    ``latents`` (B, C, h, w).
    """
    var, mean = torch.var_mean(latents, dim=(0, 2, 3))
    return 0.5 * (mean.square() + var - 1 - var.clamp_min(1e-6).log()).mean()


@torch.no_grad()
def initialise(vae: AutoencoderTiny) -> None:
    """Make channels 0-2 carry the mean colour of each 8x8 block from end to end.

    The others start random.
    """
    convs = [m for m in vae.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            nn.init.zeros_(block.conv[-1].weight)
    encoder = [m for m in vae.encoder.layers if isinstance(m, nn.Conv2d)]
    decoder = [m for m in vae.decoder.layers if isinstance(m, nn.Conv2d)]
    for conv in encoder[1:-1]:
        _copy_colour(conv, 0.25, slice(1, 3))
    for conv, gain in ((encoder[0], 1.0), (encoder[-1], CONTRAST), (decoder[0], 1 / CONTRAST)):
        _copy_colour(conv, gain, slice(1, 2))
    for conv in decoder[1:]:
        _copy_colour(conv, 1.0, slice(1, 2))
    for conv, level in ((encoder[-1], -0.5 * CONTRAST), (decoder[0], 0.5)):
        assert conv.bias is not None
        conv.bias[:3] = level


def _copy_colour(conv: nn.Conv2d, gain: float, taps: slice) -> None:
    """Channels 0-2 of the output become ``gain`` times those of the input, averaged over "
    "``taps``."""
    conv.weight[:3] = 0
    for channel in range(3):
        conv.weight[channel, channel, taps, taps] = gain


def train_autoencoder(
    work: Path, steps: int, decoder_steps: int = 0, seed: int = 0, lr: float = 1e-3
) -> AutoencoderTiny:
    """Train from scratch on poor video frames and random styles; returns the averaged weights.

    The first ``steps`` train both halves, the ``decoder_steps`` after them the decoder alone: they
    sharpen what the latents can already tell, and latents made before stay valid.
    """
    torch.manual_seed(seed)
    vae = AutoencoderTiny(scaling_factor=1.0)
    initialise(vae)
    vae = vae.to(memory_format=torch.channels_last)
    _stage("autoencoder", vae, vae, work, steps, (seed, 1), lr)
    if decoder_steps:
        vae.encoder.requires_grad_(False)
        _stage("decoder", vae, vae.decoder, work, decoder_steps, (seed, 2), 0.6 * lr)
    return vae.eval()


def _stage(
    name: str,
    vae: AutoencoderTiny,
    trained: nn.Module,
    work: Path,
    steps: int,
    seed: tuple[int, int],
    lr: float,
) -> None:
    """One resumable stage; leaves the averaged weights of ``trained`` in place."""
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((*seed, step))
        noise = torch.Generator().manual_seed(seed[0] * 1_000_003 + step)
        frames, weights = zip(*(random_frame(rng, SIZE) for _ in range(BATCH)), strict=True)
        pixels = to_pixels(np.stack(frames)).contiguous(memory_format=torch.channels_last)
        weight = torch.from_numpy(np.stack(weights)).float().unsqueeze(1)
        with half_precision():
            latents = vae.encode(pixels).latents.float()
            noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise)
            decoded = vae.decode(noisy).sample.float()
        error = decoded - pixels
        loss = (weight * (error.square() + 0.1 * error.abs())).mean()
        loss = loss + 0.01 * moment_penalty(latents)
        return loss, {
            "psnr": round(-10 * np.log10(error.square().mean().item() / 4), 2),
            "std": round(latents.std().item(), 3),
        }

    ema = run_stage(
        name, trained, optimizer, loss_of, steps=steps, work=work, lr=lr, ema_decay=0.99
    )
    assert ema is not None
    trained.load_state_dict(ema.shadow)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderTiny, look: Look, frames: int = 48, seed: int = 7) -> float:
    """Peak signal-to-noise ratio in dB of unseen frames in ``look`` through encoder and decoder."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng).window(int(rng.integers(8)), 1) for _ in range(frames)]
    pixels = to_pixels(np.concatenate([look(scene, SIZE) for scene in scenes]))
    decoded = vae.decode(vae.encode(pixels).latents).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / F.mse_loss(decoded, pixels)))
