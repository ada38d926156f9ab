"""The teacher's second stage: the words that only pure noise needs.

At the last timestep a noised clip still holds a signal (alpha^2 = .0047 over 2048 values), enough
to read where things are and where they go. So the first stage learns directions from the clip and
never from the caption: its text encoder ends with the same states for "left" and "right". Sampling
starts from pure noise, where only the caption could tell, and directions come out at random. (The
flaw is that of Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed";
here the schedule stays and the training changes.)

Three things mend it: half of the samples at high noise lose a random part of their signal while the
goal stays the whole clip; the words of direction start apart; a caption loss keeps them apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .stage import half_precision, run_stage
from .teacher import SCHEDULER, ClipStore, float_output, noise_weight
from .text import WIDTH, tokenize
from .world import MOTIONS, parse_caption

HIGH_NOISE = 700
WEAKENED = 0.5
WORDS = ("left", "right", "up", "down", "growing", "shrinking")
CAPTION_WEIGHT = 0.02
WEIGHT_CAP = 100.0


def separate_words(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Move each direction's embedding by a random vector as long as a token's own."""
    weight = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        for word in WORDS:
            weight[tokenizer(word).input_ids[1]] += torch.randn(WIDTH) * weight.std()


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps (B,), stratified; half of them above `HIGH_NOISE`."""
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    split = HIGH_NOISE / 1000
    level = torch.where(even < 0.5, 2 * split * even, split + 2 * (1 - split) * (even - 0.5))
    return (level * 1000).long().clamp_max(999)


def weakened(x0: Tensor, eps: Tensor, alpha: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """``(noisy, target)`` (B, C, F, h, w): a clip noised with only the share ``keep`` of its
    signal, and the noise that leads from there to the whole clip.

    ``alpha`` is alphas_cumprod at the sample's timestep. With ``keep`` 1 the target is ``eps``.
    """
    noisy = alpha.sqrt() * keep * x0 + (1 - alpha).sqrt() * eps
    return noisy, (noisy - alpha.sqrt() * x0) / (1 - alpha).sqrt()


def caption_loss(head: nn.Linear, states: Tensor, captions: list[str]) -> Tensor:
    """Cross-entropy of the motion that ``head`` reads from the mean text state.

    Captions that name no motion do not count.
    """
    found = [parse_caption(text)["motion"] for text in captions]
    rows = [row for row, motion in enumerate(found) if motion is not None]
    wanted = torch.tensor([motion for motion in found if motion is not None])
    return nn.functional.cross_entropy(head(states[rows].mean(dim=1)), wanted)


def teach_directions(
    work: Path,
    tokenizer: CLIPTokenizer,
    clips: ClipStore,
    unet: UNet3DConditionModel,
    text_encoder: CLIPTextModel,
    steps: int,
    batch: int = 16,
    seed: int = 7,
    lr: float = 1e-3,
) -> None:
    """Go on with the first stage's networks, in place; they end with their averaged weights."""
    torch.manual_seed(seed)
    separate_words(text_encoder, tokenizer)
    head = nn.Linear(WIDTH, len(MOTIONS))
    module = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder, "head": head})
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod
    weight = noise_weight(alphas, WEIGHT_CAP)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x0, captions = clips.batch(batch, np.random.default_rng((seed, 2, step)))
        eps = torch.randn(x0.shape, generator=generator)
        t = noise_levels(batch, generator)
        loses = (torch.rand(batch, generator=generator) < WEAKENED) & (t >= HIGH_NOISE)
        keep = torch.where(loses, torch.rand(batch, generator=generator), 1.0)
        alpha = alphas[t].view(-1, 1, 1, 1, 1)
        noisy, target = weakened(x0, eps, alpha, keep.view(-1, 1, 1, 1, 1))
        with half_precision():
            states = text_encoder(tokenize(tokenizer, captions)).last_hidden_state
            predicted = unet(noisy, t, states).sample
        error = (predicted - target).square().mean(dim=(1, 2, 3, 4))
        words = caption_loss(head, states.float(), captions)
        measures = {"eps": round(error.mean().item(), 5), "words": round(words.item(), 4)}
        return (weight[t] * error).mean() + CAPTION_WEIGHT * words, measures

    with float_output(unet):
        ema = run_stage(
            "directions", module, optimizer, loss_of, steps=steps, work=work, lr=lr, ema_decay=0.998
        )
    assert ema is not None
    module.load_state_dict(ema.shadow)
    module.eval()
