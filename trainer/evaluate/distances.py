"""Distances between two sets of feature vectors, and the intervals that say how far to trust them.

Plain functions of float arrays (N, D); the features come from elsewhere, and every published number
names the network behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

RESAMPLES = 200


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to (N, D) and (M, D), in float64.

    ``|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr sqrt(A B)`` (Dowson and Landau 1982; "FID" of
    Heusel et al. 2017). ``A = X^T X`` and ``B = Y^T Y`` with centred, scaled samples, so the
    eigenvalues of ``A B`` are the squared singular values of ``X Y^T``: their sum needs no matrix
    root and is exact for sets smaller than D, where the covariances are singular. It is biased
    upwards for few samples: compare equal N only. Raises ``ValueError`` for fewer than two samples
    or unequal D.
    """
    a, b = _checked(features_a, features_b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    x, y = _root(a), _root(b)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    distance = shift @ shift + (x * x).sum() + (y * y).sum() - 2 * cross
    return float(max(distance, 0.0))


def kid(
    features_a: np.ndarray,
    features_b: np.ndarray,
    *,
    groups_a: np.ndarray | None = None,
    groups_b: np.ndarray | None = None,
    degree: int = 3,
) -> float:
    """Kernel distance of (N, D) and (M, D): unbiased MMD^2, kernel ``(x . y / D + 1)^degree``.

    The kernel of KID (Binkowski et al. 2018, arXiv 1801.01401, section 4), as torchmetrics has it,
    but over all pairs in place of random subsets: the same expectation at the least variance. It
    may be below 0 when the sets agree. ``groups`` (N,) and (M,) number the clip that a frame is
    from; pairs within a group are left out, because frames of one clip are no independent samples.
    Raises ``ValueError`` for fewer than two groups or unequal D.
    """
    a, b = _checked(features_a, features_b)
    within = _mean_of_pairs(_kernel(a, a, degree), groups_a)
    within += _mean_of_pairs(_kernel(b, b, degree), groups_b)
    return float(within - 2 * _kernel(a, b, degree).mean())


class ClipKid:
    """`kid` of the frames of some of N clips to (M, D), for many choices of clips.

    ``ClipKid(frames (N, F, D), style (M, D))(rows)`` is the distance of the clips ``rows``, an
    index array that may name a clip more than once, with pairs of frames of one clip left out. All
    kernels are computed once; a bootstrap over clips then costs next to nothing.
    """

    def __init__(self, frames: np.ndarray, style: np.ndarray, degree: int = 3):
        count, length = frames.shape[:2]
        a, b = _checked(frames.reshape(count * length, -1), style)
        blocks = [_kernel(clip, a, degree).mean(axis=0) for clip in np.split(a, count)]
        self._clips = np.stack(blocks).reshape(count, count, length).mean(axis=2)
        self._across = _kernel(a, b, degree).mean(axis=1).reshape(count, length).mean(axis=1)
        self._style = _mean_of_pairs(_kernel(b, b, degree), None)

    def __call__(self, rows: np.ndarray) -> float:
        within = _mean_of_pairs(self._clips[np.ix_(rows, rows)], rows)
        return float(within + self._style - 2 * self._across[rows].mean())


def frame_consistency(features: np.ndarray) -> np.ndarray:
    """Mean cosine of neighbouring frames' features: (B, F, D) to (B,).

    1 for a frozen clip, so read it together with the optical flow, never alone.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(
            f"`features` must be (clips, frames, D) with two frames or more, got {features.shape}."
        )
    wide = features.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=2, keepdims=True), 1e-12)
    return (unit[:, 1:] * unit[:, :-1]).sum(axis=2).mean(axis=1)


def bootstrap(
    fn: Callable[[np.ndarray], float],
    n: int,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Confidence interval of ``fn(indices)`` over ``n`` independent units, by resampling the units.

    Percentiles of ``fn`` on ``resamples`` draws with replacement (Efron 1979), moved so that their
    mean lies on ``fn(arange(n))``: distances grow when a sample repeats, and without the move the
    interval would lie above the number it belongs to. Draws of a single unit are repeated, because
    most measures need two. Raises ``ValueError`` for n < 2 or a level outside (0, 1).
    """
    if n < 2 or not 0 < level < 1:
        raise ValueError(f"`n`={n} must be 2 or more and `level`={level} between 0 and 1.")
    rng = np.random.default_rng(seed)
    values = np.array([fn(_resample(n, rng)) for _ in range(resamples)])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, (tail, 100 - tail)) + fn(np.arange(n)) - values.mean()
    return float(low), float(high)


def share_interval(hits: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of the share ``hits / n``; a bootstrap has no width at 0 and 1.
    Of two things in a clip each counts half.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"`hits`={hits} must be between 0 and `n`={n}, and `n` at least 1.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (hits + z * z / 2) / (n + z * z)
    half = z * (hits * (n - hits) / n + z * z / 4) ** 0.5 / (n + z * z)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _resample(n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (n,) drawn with replacement, at least two of them different."""
    while (rows := rng.integers(n, size=n)).max() == rows.min():
        pass
    return rows


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            "The feature sets must be (N, D) and (M, D) with two samples or more, got "
            f"{a.shape} and {b.shape}; use the same network for both."
        )
    return a, b


def _root(features: np.ndarray) -> np.ndarray:
    """X (min(N, D), D) with ``X^T X`` the unbiased covariance of ``features`` (N, D)."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if len(centred) > centred.shape[1]:
        return np.asarray(np.linalg.qr(centred, mode="r"))
    return centred


def _kernel(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    """The polynomial kernel (N, M) of KID."""
    return (x @ y.T / x.shape[1] + 1) ** degree


def _mean_of_pairs(kernel: np.ndarray, groups: np.ndarray | None) -> float:
    """Mean of a kernel matrix (N, N) over the pairs of different groups."""
    groups = np.arange(len(kernel)) if groups is None else np.asarray(groups)
    if groups.shape != (len(kernel),):
        raise ValueError(f"`groups` must number {len(kernel)} samples, got shape {groups.shape}.")
    apart = groups[:, None] != groups[None, :]
    if not apart.any():
        raise ValueError("All samples are of one group; at least two groups are needed.")
    return float(kernel[apart].mean())
