"""Losses on predictions and targets of one shape, each a value per sample (B,), in float32.

A target never receives a gradient. Values are means over all axes but the first, so that they do
not depend on the size of a clip, and one weight a sample can be applied before the batch is
averaged.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from .representations import as_full_precision, diff

HUBER_C = 0.001
ENERGY_EPS = 1e-6
"""Variance of an energy map, in squared latent units, under which a clip counts as not moving."""


def huber(pred: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """Pseudo-Huber ``sqrt(d^2 + c^2) - c`` (arXiv 2310.14189, section 3.3), mean a sample (B,).

    ``pred`` and ``target`` are (B, ...) of one shape. Differences well under ``c`` count squared,
    differences well above it count as they are.
    """
    pred, target = _pair(pred, target)
    squared = (pred - target).square()
    # The same value without the cancellation of sqrt(d^2 + c^2) - c, and exactly 0 at d = 0.
    return _mean_of_sample(squared / ((squared + c**2).sqrt() + c))


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """Squared difference, mean a sample (B,), of two (B, ...) of one shape."""
    pred, target = _pair(pred, target)
    return _mean_of_sample((pred - target).square())


def _l2_without_c(pred: Tensor, target: Tensor, c: float) -> Tensor:
    return l2(pred, target)


MOTION_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "huber": huber,
    "l2": _l2_without_c,
}
"""Losses for motion representations by name, all called as ``(pred, target, c)``."""


def motion_loss(name: str, pred: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """Loss ``name`` of `MOTION_LOSSES` on two representations (B, ...), a value per sample (B,).

    Raises ValueError for an unknown ``name``, or if the shapes differ.
    """
    if name not in MOTION_LOSSES:
        raise ValueError(f"`loss`={name!r} is unknown; use {', '.join(MOTION_LOSSES)}.")
    return MOTION_LOSSES[name](pred, target, c)


def motion_energy(latents: Tensor) -> Tensor:
    """Where a clip moves: mean over C of |frame difference|: (B, F - 1, h, w)."""
    return diff(latents).abs().mean(dim=1)


def motion_energy_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of the centred motion energy maps of two clips (B, C, F, h, w), per sample (B,).

    Blind to colour (to the order and sign of channels) and to the amount of motion; it compares
    where and when the clips move. Two clips without motion agree (0); one without motion and one
    with do not (1).

    Raises ValueError if the shapes differ, or there are fewer than 2 frames.
    """
    pred, target = _pair(pred, target)
    a, b = (_centred(motion_energy(clip)) for clip in (pred, target))
    # The constant acts as one more coordinate that the two maps share: the cosine stays within [-1,
    # 1], and it is 1 for two equal maps, empty ones included.
    dot, power_a, power_b = ((x * y).mean(dim=1) + ENERGY_EPS for x, y in ((a, b), (a, a), (b, b)))
    return 1 - dot / (power_a.sqrt() * power_b.sqrt())


def low_pass_anchor(pred: Tensor, target: Tensor, pool: int = 4, c: float = HUBER_C) -> Tensor:
    """`huber` of two clips (B, C, F, h, w) after average pooling of every frame, (B,).

    ``pool`` is the side of the pooled squares. Weakly weighted, it keeps layout and colour near the
    consistency target and leaves the detail free.

    Raises ValueError if the shapes differ, or ``pool`` (latent cells) does not divide h and w.
    """
    pred, target = _pair(pred, target)
    return huber(_pooled(pred, pool), _pooled(target, pool), c)


def self_anchor(pred: Tensor, earlier: Tensor, pool: int = 2, c: float = HUBER_C) -> Tensor:
    """`low_pass_anchor` of a prediction to an ``earlier`` one of the student, per sample (B,).

    Both are (B, C, F, h, w); ``pred`` is made from the re-noised ``earlier``. It is what keeps 4
    and 8 steps from washing out.
    """
    return low_pass_anchor(pred, earlier, pool, c)


def _pair(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if pred.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} must have one shape; "
            "make both with the same representation."
        )
    return as_full_precision(pred), as_full_precision(target.detach())


def _mean_of_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _centred(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)


def _pooled(clip: Tensor, pool: int) -> Tensor:
    batch, channels, frames, height, width = clip.shape
    if pool < 1 or height % pool or width % pool:
        raise ValueError(f"`pool`={pool} does not divide latents of {height}x{width}; use 2 or 4.")
    pooled = functional.avg_pool2d(clip.reshape(batch, channels * frames, height, width), pool)
    return pooled.reshape(batch, channels, frames, height // pool, width // pool)
