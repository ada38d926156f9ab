"""The small Wan's transformer: flow matching on clips of poor video, text encoder beside it.

Half-way through its blocks a linear reader tells what is at each token, ground or which shape in
which colour, as REPA does with a vision model's features (Yu et al. 2024, arXiv 2410.06940): here
the truth is known. The reader is left out of the model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from trainer.mini.sentences import COLOURS, SHAPES
from trainer.models.umt5 import TextTokenizer

from .flow_clips import FlowClips
from .flow_text import WIDTH, Reader, build_encoder
from .muon import Muon
from .stage import run_stage, steady

SHIFT = 3.0
"""Of the levels in training."""
HEADS, LAYERS, HIDDEN = 2, 8, 1024
READ_BLOCK = 3
KINDS = 1 + len(SHAPES) * len(COLOURS)
BATCH = 8
PLAIN = re.compile("scale_shift|shared|embed_tokens|attention_bias|proj_out|reading")
READING = 0.3
"""Weight of the reader's loss at the beginning; it falls to nothing at half of the steps."""


def build_transformer(seed: int = 0) -> WanTransformer3DModel:
    """Wan's architecture at small size: heads of 128, about 9M parameters."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=128,
        num_layers=LAYERS,
        ffn_dim=HIDDEN,
        text_dim=WIDTH,
    )


class Teacher(nn.Module):
    """Transformer, text encoder, and the reader of what its tokens show."""

    def __init__(self, tokenizer: TextTokenizer, seed: int = 0):
        super().__init__()
        self.transformer: Any = build_transformer(seed)
        self.text_encoder = build_encoder(seed)
        self.text = Reader(self.text_encoder, tokenizer)
        self.reading = nn.Linear(HEADS * 128, KINDS)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by how they are trained: what turns numbers into states and states into
        numbers by AdamW.
        """
        named = list(self.named_parameters())
        plain = [value for name, value in named if PLAIN.search(name)]
        matrices = [value for name, value in named if not PLAIN.search(name)]
        return [{"params": matrices}, {"params": plain, "plain": True}]

    def velocity(self, noisy: Tensor, level: Tensor, prompts: list[str]) -> Tensor:
        """v = eps - x0 of latents (B, 16, f, h, w) at ``level`` (B,)."""
        return self.transformer(noisy, 1000 * level, self.text(prompts)).sample

    def losses(
        self, x0: Tensor, eps: Tensor, level: Tensor, prompts: list[str], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flow-matching error (B,) and the reader's loss."""
        kept: list[Tensor] = []
        block = self.transformer.blocks[READ_BLOCK]
        hook = block.register_forward_hook(lambda module, given, made: kept.append(made))
        sigma = level.view(-1, 1, 1, 1, 1)
        try:
            v = self.velocity((1 - sigma) * x0 + sigma * eps, level, prompts)
        finally:
            hook.remove()
        read = self.reading(kept[0]).flatten(0, 1)
        error = (v - (eps - x0)).square().mean(dim=(1, 2, 3, 4))
        return error, F.cross_entropy(read, labels.flatten())


def shifted(even: Tensor, shift: float = SHIFT) -> Tensor:
    """Levels ``even`` in 0..1 moved towards noise (arXiv 2403.03206, section 5.3.2)."""
    return shift * even / (1 + (shift - 1) * even)


def train_teacher(
    work: Path, tokenizer: TextTokenizer, clips: FlowClips, steps: int, lr: float = 1e-3
) -> Teacher:
    """Trained from nothing, or from where ``work`` was left; averaged weights, in eval mode."""
    teacher = Teacher(tokenizer)
    optimizer = Muon(teacher.groups(), lr)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((2, step))
        noise = torch.Generator().manual_seed(step)
        x0, prompts, labels = clips.batch(BATCH, rng)
        eps = torch.randn(x0.shape, generator=noise)
        spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=noise)) / BATCH
        error, reading = teacher.losses(x0, eps, shifted(spread), prompts, labels)
        weight = READING * max(0.0, 1 - 2 * step / steps)
        measures = {
            "flow": round(error.mean().item(), 5),
            "high": round(error[-2:].mean().item(), 5),
            "reading": round(reading.item(), 4),
        }
        return error.mean() + weight * reading, measures

    ema = run_stage(
        "transformer", teacher, optimizer, loss_of, steps=steps, work=work, lr=lr,
        ema_decay=0.9995, schedule=steady,
    )  # fmt: skip
    assert ema is not None
    teacher.load_state_dict(ema.shadow)
    return teacher.eval().requires_grad_(False)
