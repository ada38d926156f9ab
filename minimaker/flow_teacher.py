"""The small Wan's transformer: flow matching on clips of poor video, text encoder beside it.

Half-way through its blocks a linear reader tells what is in each cell of a token, ground or which
shape in which colour, as REPA does with a vision model's features (Yu et al. 2024, arXiv
2410.06940): here the truth is known. The reader is left out of the model.

It learns what words mean on clips of half the size first (progressive training, Podell et al. 2023,
arXiv 2307.01952): a quarter of the tokens, at the same places of the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from trainer.mini.sentences import COLOURS, SHAPES
from trainer.models.umt5 import TextTokenizer

from .flow_clips import CELL, TOKEN, load_clips
from .flow_text import WIDTH, Reader, build_encoder, kept_pieces
from .helpers import Helpers
from .muon import Muon
from .route import Route
from .scenes import SIZE
from .stage import run_stage, steady

SHIFT = 3.0
"""Of the levels in training and sampling; a quarter of the tokens want half of it."""
HEADS, LAYERS, HIDDEN = 2, 8, 1024
WHOLE, SMALL = "transformer", "transformer-small"
"""The stages' names."""
READ_BLOCK = 3
KINDS = 1 + len(SHAPES) * len(COLOURS)
CELLS = TOKEN // CELL
"""Cells a side of a token."""
THINGS, SHOWN = 4.0, 0.7
"""How much more the error counts in tokens that show part of a thing, and up to which level."""
ROUTE, ROUTED, KEPT = (1, 5), 0.75, 0.5
"""Blocks that tokens pass by, the share of the batches in which they do, and of the tokens that do
not.
"""
PLAIN = re.compile("scale_shift|shared|embed_tokens|attention_bias|proj_out|reading")
WHILE_SMALL, LATER = (16, SHIFT / 2, 0.3), (16, SHIFT, 0.3)
"""Clips a batch, shift of the levels and weight of the reader's loss."""


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


class Spread(nn.Module):
    """Rotary positions of a clip at half size: those of every second token of the whole size."""

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, f h w / 4, 1, 128) for ``states`` (B, 16, f, h, w)."""
        frames, height, width = states.shape[2:]
        grid = (frames, height, width)
        full = self.rope(states.new_empty(1, 1, frames, 2 * height, 2 * width))
        cosine, sine = (
            part[0, :, 0].unflatten(0, grid)[:, ::2, ::2].flatten(0, 2)[None, :, None]
            for part in full
        )
        return cosine, sine


class Teacher(nn.Module):
    """Transformer, text encoder, and the reader of what its tokens show."""

    def __init__(self, tokenizer: TextTokenizer, seed: int = 0):
        super().__init__()
        self.transformer: Any = build_transformer(seed)
        self.text_encoder = build_encoder(seed)
        self.text = Reader(self.text_encoder, tokenizer)
        self.reading = nn.Linear(HEADS * 128, CELLS**2 * KINDS)
        self.route = Route(self.transformer.blocks, *ROUTE)

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
        """Flow-matching error (B,) and the reader's loss.

        What things look like counts more than the ground, where a noisy clip still shows them: at
        other levels that would move the minimum, towards more and larger things.
        """
        kept: list[Tensor] = []
        block = self.transformer.blocks[READ_BLOCK]
        hook = block.register_forward_hook(lambda module, given, made: kept.append(made))
        sigma = level.view(-1, 1, 1, 1, 1)
        try:
            v = self.velocity((1 - sigma) * x0 + sigma * eps, level, prompts)
        finally:
            hook.remove()
        cells = "b f (h y) (w x) -> b (f h w) (y x)"
        labels = rearrange(labels, cells, y=CELLS, x=CELLS)
        counts = (labels > 0).any(dim=2) & (level <= SHOWN)[:, None]
        weight = torch.where(counts, THINGS, 1.0)
        patches = "b c f (h y) (w x) -> b (f h w) (c y x)"
        error = rearrange((v.float() - (eps - x0)).square(), patches, y=2, x=2).mean(dim=2)
        error = (weight * error).mean(dim=1) / weight.mean()
        if self.route.kept is not None:
            labels = labels[:, self.route.kept]
        read = self.reading(kept[0]).float().unflatten(2, (-1, KINDS))
        return error, F.cross_entropy(read.flatten(0, 2), labels.flatten())


def shifted(even: Tensor, shift: float = SHIFT) -> Tensor:
    """Levels ``even`` in 0..1 moved towards noise (arXiv 2403.03206, section 5.3.2)."""
    return shift * even / (1 + (shift - 1) * even)


def build_training(
    work: Path, small: bool, device: str = "cpu", batch: int | None = None
) -> tuple[Teacher, Callable[[int], tuple[Tensor, dict[str, float]]]]:
    """An untrained teacher on ``device``, and the loss of each of its steps on ``batch`` clips,
    from the tokenizer and the clips in ``work``. A graphics card computes in bfloat16.
    """
    teacher = Teacher(kept_pieces(work / "tokenizer")).to(device)
    if small:
        teacher.transformer.rope = Spread(teacher.transformer.rope)
    size = SIZE // 2 if small else SIZE
    clips = load_clips(sorted(work.glob(f"flow-clips-{size}-*.safetensors")))
    usual, shift, weight = WHILE_SMALL if small else LATER
    batch = batch or usual
    bfloat16 = torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu")

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((2 + small, step))
        noise = torch.Generator().manual_seed(step)
        x0, prompts, labels = clips.batch(batch, rng)
        teacher.route.kept = None
        if not small and rng.random() < ROUTED:
            teacher.route.draw(labels[0].numel() // CELLS**2, KEPT, noise, device)
        eps = torch.randn(x0.shape, generator=noise)
        spread = (torch.arange(batch) + torch.rand(batch, generator=noise)) / batch
        x0, eps, level, labels = (
            value.to(device) for value in (x0, eps, shifted(spread, shift), labels)
        )
        with bfloat16:
            error, reading = teacher.losses(x0, eps, level, prompts, labels)
        measures = {
            "flow": round(error.mean().item(), 5),
            "high": round(error[-batch // 4 :].mean().item(), 5),
            "reading": round(reading.item(), 4),
        }
        return error.mean() + weight * reading, measures

    return teacher, loss_of


def train_teacher(
    work: Path,
    steps: int,
    small: bool = False,
    lr: float = 1e-3,
    helpers: int = 0,
    device: str = "cpu",
    batch: int | None = None,
) -> Teacher:
    """Trained from where ``work`` was left, else from the training on ``small`` clips, else from
    nothing, with that many ``helpers``, on ``device``; averaged weights, in eval mode on the CPU.
    """
    given = (work, small, device, batch)
    teacher, loss_of = build_training(*given)
    if not small and (work / f"{SMALL}.pt").is_file():
        load_teacher(teacher, work, SMALL)
    name = SMALL if small else WHOLE
    run_stage(
        name, teacher, Muon(teacher.groups(), lr), loss_of, steps=steps, work=work, lr=lr,
        ema_decay=0.9995, schedule=steady,
        helpers=Helpers(helpers, build_training, *given) if helpers else None,
    )  # fmt: skip
    trained = Teacher(kept_pieces(work / "tokenizer"))
    return load_teacher(trained, work, name).eval().requires_grad_(False)


def load_teacher(teacher: Teacher, work: Path, name: str = WHOLE) -> Teacher:
    """``teacher`` with the averaged weights of a stage, as far as it got in ``work``."""
    state = torch.load(work / f"{name}.pt", weights_only=True, map_location="cpu")
    teacher.load_state_dict(state["ema"])
    return teacher
