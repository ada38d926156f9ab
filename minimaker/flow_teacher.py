"""The small Wan's transformer: flow matching on clips of poor video, text encoder beside it.

Half-way through its blocks a linear reader tells what is in each cell of a token, ground or which
shape in which colour, as REPA does with a vision model's features (Yu et al. 2024, arXiv
2410.06940): here the truth is known. The reader is left out of the model.

It learns what words mean on clips of half the size first (progressive training, Podell et al. 2023,
arXiv 2307.01952): a quarter of the tokens, at the same places of the picture. Then outlines, on
parts of whole clips (`flow_parts`), and at last the clips themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from trainer.mini.sentences import COLOURS, SHAPES
from trainer.models.umt5 import TextTokenizer

from .flow_clips import load_clips
from .flow_parts import CELLS, Part, Parts, Placed
from .flow_text import WIDTH, Reader, build_encoder, kept_pieces
from .helpers import Helpers
from .muon import Muon
from .route import Route
from .scenes import SIZE
from .stage import run_stage, steady

SHIFT = 3.0
"""Of the levels in training and sampling; fewer tokens want less of it."""
HEADS, LAYERS, HIDDEN = 2, 8, 1024
READ_BLOCK = 3
KINDS = 1 + len(SHAPES) * len(COLOURS)
THINGS = 4.0
"""How much more the error counts in tokens that show part of a thing."""
ROUTE, KEPT = (1, 5), 0.5
"""Blocks that tokens pass by, and the share of the tokens that do not."""
PLAIN = re.compile("scale_shift|shared|embed_tokens|attention_bias|proj_out|reading")
READING = 0.3
"""Weight of the reader's loss."""


class Kind(NamedTuple):
    """Of parts of clips: the ``share`` of the batches that have such, how many a batch has, the
    shift of their levels, up to which level things count more, and in what share of the batches
    tokens pass by blocks.
    """

    share: float
    batch: int
    shift: float
    shown: float
    routed: float


class Stage(NamedTuple):
    """The ``kinds`` of parts, of clips with ``side`` px."""

    side: int
    kinds: dict[str, Kind]


WHOLE, PARTS, SMALL = "transformer", "transformer-parts", "transformer-small"
STAGES = {
    SMALL: Stage(SIZE // 2, {"whole": Kind(1, 16, SHIFT / 2, 0.7, 0)}),
    PARTS: Stage(
        SIZE,
        {
            "whole": Kind(0.1, 8, SHIFT, 0.75, 0.75),
            "latent": Kind(0.42, 40, 2.2, 0.75, 0.75),
            "window": Kind(0.48, 100, 2.2, 0.93, 0),
        },
    ),
    WHOLE: Stage(
        SIZE,
        {
            "whole": Kind(0.7, 8, SHIFT, 0.75, 0.75),
            "latent": Kind(0.2, 40, 2.2, 0.75, 0.75),
            "window": Kind(0.1, 100, 2.2, 0.93, 0),
        },
    ),
}
"""In order; each begins with the weights of the one before."""


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
        self.reading = nn.Linear(HEADS * 128, CELLS**2 * KINDS)
        self.route = Route(self.transformer.blocks, *ROUTE)
        self.placed = self.transformer.rope = Placed(self.transformer.rope)

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

    def losses(self, part: Part, eps: Tensor, level: Tensor, shown: float) -> tuple[Tensor, Tensor]:
        """Flow-matching error (B,) and the reader's loss.

        What things look like counts more than the ground up to the level ``shown``, where noisy
        latents still show them: above, that would move the minimum, towards more and larger things.
        A window tells where its things are.
        """
        x0, prompts, labels, self.placed.places = part
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
        counts = (labels > 0).any(dim=2) & (level <= shown)[:, None]
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
    work: Path, name: str, device: str = "cpu", batch: int | None = None
) -> tuple[Teacher, Callable[[int], tuple[Tensor, dict[str, float]]]]:
    """An untrained teacher on ``device``, and the loss of each step of the stage ``name``, with
    ``batch`` whole clips or as many parts as go with them, from the tokenizer and the clips in
    ``work``. A graphics card computes in bfloat16.
    """
    teacher = Teacher(kept_pieces(work / "tokenizer")).to(device)
    stage = STAGES[name]
    parts = Parts(load_clips(sorted(work.glob(f"flow-clips-{stage.side}-*.safetensors"))))
    scale = batch / stage.kinds["whole"].batch if batch else 1
    shares = [kind.share for kind in stage.kinds.values()]
    bfloat16 = torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu")

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((list(STAGES).index(name), step))
        noise = torch.Generator().manual_seed(step)
        drawn = str(rng.choice(list(stage.kinds), p=shares))
        kind = stage.kinds[drawn]
        part = parts.draw(drawn, max(1, round(scale * kind.batch)), rng)
        count = len(part.x0)
        teacher.route.kept = None
        if rng.random() < kind.routed:
            teacher.route.draw(part.places.shape[1], KEPT, noise, device)
        eps = torch.randn(part.x0.shape, generator=noise).to(device)
        spread = (torch.arange(count) + torch.rand(count, generator=noise)) / count
        level = shifted(spread, kind.shift).to(device)
        with bfloat16:
            error, reading = teacher.losses(part.to(device), eps, level, kind.shown)
        measures = {
            "flow": round(error.mean().item(), 5),
            "high": round(error[-count // 4 :].mean().item(), 5),
            "reading": round(reading.item(), 4),
        }
        return error.mean() + READING * reading, measures

    return teacher, loss_of


def train_teacher(
    work: Path,
    steps: int,
    name: str = WHOLE,
    lr: float = 1e-3,
    helpers: int = 0,
    device: str = "cpu",
    batch: int | None = None,
) -> Teacher:
    """Trained in the stage ``name`` from where ``work`` was left, else from the stage before, else
    from nothing, with that many ``helpers``, on ``device``; averaged weights, in eval mode on the
    CPU.
    """
    given = (work, name, device, batch)
    teacher, loss_of = build_training(*given)
    stages = list(STAGES)
    before = stages[: stages.index(name)]
    if before and (work / f"{before[-1]}.pt").is_file():
        load_teacher(teacher, work, before[-1])
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
