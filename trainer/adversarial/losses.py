"""Adversarial losses: pure functions of feature maps, text vectors and logits, in fp32.

The discriminator is any object with ``embed(features)`` and ``judge(embedded, text)`` as in
`Discriminator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Judge(Protocol):
    """What the losses need of a discriminator; see `Discriminator`."""

    def embed(self, features: Sequence[Tensor]) -> Any: ...
    def judge(self, embedded: Any, text: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class GanLoss:
    """Element-wise losses of logits: of real and of fake ones for D, of fake ones for G."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


GAN_LOSSES: dict[str, GanLoss] = {
    "hinge": GanLoss(lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), torch.neg),
    "bce": GanLoss(lambda x: F.softplus(-x), F.softplus, lambda x: F.softplus(-x)),
    "wgan": GanLoss(torch.neg, torch.clone, torch.neg),
}


def gan_loss(kind: str) -> GanLoss:
    """The entry of `GAN_LOSSES`; ``ValueError`` with the allowed names otherwise."""
    if kind not in GAN_LOSSES:
        allowed = ", ".join(repr(name) for name in GAN_LOSSES)
        raise ValueError(f"`kind`={kind!r} is not an adversarial loss; use one of {allowed}.")
    return GAN_LOSSES[kind]


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Scalars of one discriminator step; call ``backward`` on ``total`` only.

    ``mismatched`` and ``r1`` are 0 if not requested; ``r1`` is unweighted.
    """

    total: Tensor
    real: Tensor
    fake: Tensor
    mismatched: Tensor
    r1: Tensor
    real_logits_mean: Tensor
    fake_logits_mean: Tensor


R1_EVERY = 8
"""Steps between R1 penalties: lazy regularisation (StyleGAN2, arXiv 1912.04958, B)."""


def discriminator_loss(
    disc: Judge,
    feats_real: Sequence[Tensor],
    text_real: Tensor,
    feats_fake: Sequence[Tensor],
    text_fake: Tensor,
    kind: str = "hinge",
    mismatched_text: Tensor | None = None,
    mismatched_mask: Tensor | None = None,
    r1_weight: float = 0.0,
) -> DiscriminatorLoss:
    """Loss of the discriminator: ``real + negatives + r1_weight / 2 * r1``.

    ``feats_*`` are lists of maps (N, C_i, h_i, w_i), real and fake may differ in N; ``text_*`` (N,
    D). Everything is detached here: no gradient leaves the discriminator. ``mismatched_text``
    (N_real, D) judges the real maps with another image's text as a second kind of negative (Reed et
    al. 2016, GAN-CLS); ``mismatched_mask`` (N_real,) bool leaves rows out. The two kinds of
    negatives have half the weight each, so that real and fake stay balanced. See `r1_penalty`.
    """
    loss = gan_loss(kind)
    feats_real = [f.detach().requires_grad_(r1_weight > 0) for f in feats_real]
    feats_fake = [f.detach() for f in feats_fake]
    embedded = disc.embed(feats_real)
    real_logits = disc.judge(embedded, text_real.detach()).float()
    fake_logits = disc.judge(disc.embed(feats_fake), text_fake.detach()).float()
    real, fake = loss.real(real_logits).mean(), loss.fake(fake_logits).mean()
    r1 = r1_penalty(real_logits, feats_real) if r1_weight > 0 else torch.zeros_like(real)
    each = None
    if mismatched_text is not None:
        each = loss.fake(disc.judge(embedded, mismatched_text.detach()).float()).mean(1)
    mismatched, negatives = _negatives(fake, each, mismatched_mask)
    return DiscriminatorLoss(
        total=real + negatives + 0.5 * r1_weight * r1,
        real=real,
        fake=fake,
        mismatched=mismatched,
        r1=r1,
        real_logits_mean=real_logits.detach().mean(),
        fake_logits_mean=fake_logits.detach().mean(),
    )


def _negatives(fake: Tensor, each: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of ``each`` (N,) where ``mask`` counts it, and both kinds of negatives together."""
    if each is None:
        return torch.zeros_like(fake), fake
    mask = torch.ones_like(each) if mask is None else mask.to(each)
    mismatched = (each * mask).sum() / mask.sum().clamp(min=1)
    # If no pair could be mismatched, the fakes get all the weight.
    share = 0.5 * mask.amax()
    return mismatched, (1 - share) * fake + share * mismatched


def r1_penalty(logits: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Mean squared gradient norm of each sample's mean logit (R1, Mescheder et al. 2018).

    ``logits`` (N, k) made from ``inputs`` (each (N, ...), requiring grad) without coupling samples:
    then the gradient of the sum holds every sample's own gradient. Differentiable again (double
    backward).
    """
    scores = logits.mean(1).sum()
    gradients = torch.autograd.grad(scores, list(inputs), create_graph=True)
    squared = [g.float().square().flatten(1).sum(1) for g in gradients]
    return torch.stack(squared).sum(0).mean()


def generator_loss(logits: Tensor, kind: str = "hinge") -> Tensor:
    """Scalar loss of the student for the logits (N, k) of its frames."""
    return gan_loss(kind).generator(logits.float()).mean()


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, ``module`` passes gradients through but stores none, and a forward does not change
    it.

    Without this the student's backward fills the discriminator's gradients. Eval mode stops the
    power iterations of the spectral norm. Both are put back on leaving; backward may be called
    afterwards.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    modes = [(m, m.training) for m in module.modules()]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        module.eval()
        yield module
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for part, mode in modes:
            part.training = mode


@dataclass(frozen=True)
class Mismatch:
    """Row i takes the text of row ``permutation[i]`` (N,) long; where ``possible`` (N,) bool is
    False, only an equal caption was available. Both on the CPU.
    """

    permutation: Tensor
    possible: Tensor


def mismatch_permutation(captions: Sequence[str], generator: torch.Generator) -> Mismatch:
    """A random permutation that gives as many rows as possible a caption different from their own.

    It is a true permutation: mismatched texts are as frequent as matched ones, so the discriminator
    cannot recognise a negative by its text alone. Captions are compared without case and extra
    spaces.
    """
    count = len(captions)
    keys = [" ".join(text.split()).casefold() for text in captions]
    shuffled = torch.randperm(count, generator=generator, device=generator.device).tolist()
    groups: dict[str, list[int]] = {}
    for row in shuffled:
        groups.setdefault(keys[row], []).append(row)
    ordered = [row for rows in groups.values() for row in rows]
    # Equal captions are adjacent, so rotating by the size of the largest group moves every row
    # out of its own group. If that group has more than half of all rows, some land in it again
    # and are marked.
    turn = max(map(len, groups.values()), default=0)
    permutation = [0] * count
    for place, row in enumerate(ordered):
        permutation[row] = ordered[(place + turn) % count]
    possible = [keys[row] != keys[other] for row, other in enumerate(permutation)]
    return Mismatch(
        torch.tensor(permutation, dtype=torch.long), torch.tensor(possible, dtype=torch.bool)
    )


class GradientRatio:
    """Adaptive adversarial weight ``ratio * |g_consistency| / |g_adversarial|``.

    Both gradients are with respect to the predicted latents, so nothing after them is computed
    twice.

    After VQGAN's adaptive weight (Esser et al. 2021, equation 7). Both norms are smoothed before
    they are divided: if the quotient were smoothed, one batch with a vanishing adversarial gradient
    would dominate the weight for the next twenty. ``decay`` of the moving average; the weight is
    clamped to [``minimum``, ``maximum``]. Norms are of the whole batch. The state is two numbers.
    """

    def __init__(
        self,
        ratio: float = 1.0,
        decay: float = 0.9,
        minimum: float = 0.0,
        maximum: float = 10.0,
    ) -> None:
        if ratio < 0 or not 0 <= decay < 1 or not 0 <= minimum <= maximum:
            raise ValueError(
                f"Got `ratio`={ratio}, `decay`={decay}, `minimum`={minimum}, `maximum`={maximum}; "
                "allowed are ratio >= 0, 0 <= decay < 1, 0 <= minimum <= maximum."
            )
        self.ratio, self.decay = ratio, decay
        self.minimum, self.maximum = minimum, maximum
        self._norms: Tensor | None = None  # NaN until the first finite batch

    @property
    def norms(self) -> Tensor | None:
        """The two smoothed norms (2,), or None before the first finite batch; waits for the
        device.
        """
        if self._norms is None or not bool(self._norms.isfinite().all()):
            return None
        return self._norms

    @property
    def weight(self) -> Tensor:
        """The current weight, a scalar tensor; ``minimum`` before the first update."""
        if self._norms is None:
            return torch.tensor(self.minimum)
        tiny = torch.finfo(torch.float32).tiny
        quotient = self.ratio * self._norms[0] / self._norms[1].clamp(min=tiny)
        return quotient.clamp(self.minimum, self.maximum).nan_to_num(nan=self.minimum)

    def update(self, consistency_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
        """The new weight from both losses' gradients with respect to the predicted latents, (B, C,
        F, h, w) each.

        A batch with a NaN or infinite norm does not change the averages; nothing is read back from
        the device.
        """
        norms = torch.stack(
            [g.detach().float().norm() for g in (consistency_gradient, adversarial_gradient)]
        )
        nothing = torch.full_like(norms, torch.nan)
        old = nothing if self._norms is None else self._norms.to(norms.device)
        smooth = self.decay * old + (1 - self.decay) * norms
        new = torch.where(old.isfinite().all(), smooth, norms)
        self._norms = torch.where(norms.isfinite().all(), new, old)
        return self.weight

    def state_dict(self) -> dict[str, Tensor | None]:
        norms = self.norms
        return {"norms": None if norms is None else norms.detach().cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Inverse of `state_dict`; ``ValueError`` for a state of another kind."""
        if set(state) != {"norms"}:
            raise ValueError(
                f"The state of `GradientRatio` has the one key 'norms', got {sorted(state)}; "
                "resume from a checkpoint of the same version."
            )
        norms = state["norms"]
        self._norms = None if norms is None else norms.clone()
