"""The mini model's teacher: a UNet3DConditionModel and its text encoder, trained on poor
public-looking video. `directions` is its second stage.

Clips are rendered as sequences of 12 frames, encoded once and cached. Every window of 8 frames is a
clip, and so is its reverse in time with the opposite caption, which makes ten clips out of twelve
encoded frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.mini.words import COLOURS, MOTIONS, SHAPES, SIZE

from .autoencoder import to_pixels
from .looks import public_video
from .stage import half_precision, run_stage
from .text import WIDTH, build_text_encoder, tokenize
from .world import FRAMES, REVERSED, caption, random_scene

SEQUENCE = 12
SHARD = 250
EMPTY_CAPTIONS = 0.1
STILL_CAPTIONS = 0.03
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_unet(seed: int = 0) -> UNet3DConditionModel:
    """ModelScope's architecture at mini size: latents (B, 4, 8, 8, 8), about 1.7M parameters."""
    torch.manual_seed(seed)
    return UNet3DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )


@dataclass(frozen=True)
class ClipStore:
    """Encoded sequences.

    ``latents`` (N, 12, 4, 8, 8) fp16 and ``labels`` (N, 3) as (shape, colour, motion).
    """

    latents: torch.Tensor
    labels: torch.Tensor

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
        """``size`` clips (B, 4, F, 8, 8) with their captions.

        Random windows, half of them reversed.
        """
        rows = rng.integers(len(self.latents), size=size)
        starts = rng.integers(SEQUENCE - FRAMES + 1, size=size)
        clips, captions = [], []
        for row, start in zip(rows, starts, strict=True):
            clip = self.latents[row, start : start + FRAMES]
            shape, colour, motion = (int(v) for v in self.labels[row])
            word = MOTIONS[motion]
            if rng.random() < 0.5:
                clip, word = clip.flip(0), REVERSED[word]
            clips.append(clip.permute(1, 0, 2, 3).float())
            captions.append(_drop(caption(SHAPES[shape], COLOURS[colour], word), word, rng))
        return torch.stack(clips), captions


def _drop(text: str, motion: str, rng: np.random.Generator) -> str:
    """Empty captions teach the unconditional model.

    Captions without a motion keep stills in distribution.
    """
    draw = rng.random()
    if draw < EMPTY_CAPTIONS:
        return ""
    return text.removesuffix(f" {motion}") if draw < EMPTY_CAPTIONS + STILL_CAPTIONS else text


@contextmanager
def float_output(unet: UNet3DConditionModel) -> Iterator[None]:
    """While open, the last convolution computes in float32: bfloat16 spoils eps near t = 999."""
    forward = unet.conv_out.forward

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    unet.conv_out.forward = run
    try:
        yield
    finally:
        unet.conv_out.forward = forward


@torch.no_grad()
def encode_shard(vae: AutoencoderTiny, file: Path, seed: int) -> None:
    """Render and encode ``SHARD`` sequences of poor video into ``file``."""
    rng = np.random.default_rng(seed)
    latents, labels = [], []
    for _ in tqdm(range(SHARD), desc=file.stem, mininterval=10):
        scene = random_scene(rng, SEQUENCE)
        pixels = to_pixels(public_video(scene)).contiguous(memory_format=torch.channels_last)
        with half_precision():
            latents.append(vae.encode(pixels).latents.contiguous().half())
        words = (
            SHAPES.index(scene.shape),
            COLOURS.index(scene.colour),
            MOTIONS.index(scene.motion or ""),
        )
        labels.append(words)
    temporary = file.with_suffix(".tmp")
    tensors = {"latents": torch.stack(latents), "labels": torch.tensor(labels, dtype=torch.uint8)}
    save_file(tensors, temporary, metadata={"seed": json.dumps(seed)})
    temporary.replace(file)


def encode_clips(vae: AutoencoderTiny, work: Path, shards: int, seed: int = 1000) -> list[Path]:
    """Encode what is missing of ``shards`` shards; returns their files."""
    work.mkdir(parents=True, exist_ok=True)
    files = [work / f"clips-{index:03d}.safetensors" for index in range(shards)]
    for index, file in enumerate(files):
        if not file.exists():
            encode_shard(vae, file, seed + index)
    return files


def load_clips(files: list[Path]) -> ClipStore:
    """Read the shards into memory (about 3 KiB a frame)."""
    latents, labels = [], []
    for file in files:
        with safe_open(file, "pt") as shard:
            latents.append(shard.get_tensor("latents"))
            labels.append(shard.get_tensor("labels"))
    return ClipStore(torch.cat(latents), torch.cat(labels))


def noise_weight(alphas_cumprod: torch.Tensor, cap: float = 25.0) -> torch.Tensor:
    """Weight of the eps loss per timestep (1000,): that of a v loss, up to ``cap``, with min-SNR-5
    at low noise.

    Layout and motion are decided at high noise, where a plain eps loss hardly looks (Hang et al.
    2023, eq. 5; Salimans and Ho 2022, sec. 4).
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (1 / alphas_cumprod).clamp_max(cap) * (5 / snr).clamp_max(1)


def stratified_times(batch: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Ascending timesteps (B,) below ``count``, one from each of ``batch`` equal parts."""
    spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return (spread * count).long().clamp_max(count - 1)


def train_teacher(
    work: Path,
    tokenizer: CLIPTokenizer,
    clips: ClipStore,
    steps: int,
    batch: int = 16,
    seed: int = 0,
    lr: float = 2e-3,
) -> tuple[UNet3DConditionModel, CLIPTextModel]:
    """UNet and text encoder trained together from scratch, with averaged weights, in eval mode."""
    unet, text_encoder = build_unet(seed), build_text_encoder(tokenizer, seed)
    unet.eval()  # TemporalConvLayer's dropout only slows a model this small
    unet.set_attn_processor(AttnProcessor())  # 40 % faster than the fused kernel at 8x8 tokens
    module = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod
    weight = noise_weight(alphas)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((seed, 2, step))
        noise = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x0, captions = clips.batch(batch, rng)
        eps = torch.randn(x0.shape, generator=noise)
        t = stratified_times(batch, len(alphas), noise)
        alpha = alphas[t].view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps
        with half_precision():
            text = text_encoder(tokenize(tokenizer, captions)).last_hidden_state
            predicted = unet(noisy, t, text).sample
        error = (predicted - eps).square().mean(dim=(1, 2, 3, 4))
        far = (error * (1 - alphas[t]) / alphas[t]).detach()[-4:].mean()
        measures = {"eps": round(error.mean().item(), 5), "x0_high": round(far.item(), 4)}
        return (weight[t] * error).mean(), measures

    with float_output(unet):
        named: dict[str, Any] = {"steps": steps, "work": work, "lr": lr, "ema_decay": 0.998}
        ema = run_stage("teacher", module, optimizer, loss_of, **named)
    assert ema is not None
    module.load_state_dict(ema.shadow)
    return unet.eval(), text_encoder.eval()
