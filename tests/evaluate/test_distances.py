from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from trainer.evaluate.distances import (
    ClipKid,
    bootstrap,
    frame_consistency,
    frechet_distance,
    kid,
    share_interval,
)


def gaussian(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> np.ndarray:
    """Samples (count, D) whose mean is ``mean`` and covariance ``root.T @ root``, both exactly."""
    z = np.random.default_rng(seed).standard_normal((count, len(mean)))
    z -= z.mean(axis=0)
    z = np.linalg.qr(z)[0] * np.sqrt(count - 1)
    return mean + z @ root


def test_frechet_is_the_closed_form_for_commuting_gaussians():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    a_std, b_std = rng.uniform(0.2, 2, 5), rng.uniform(0.2, 2, 5)
    a_mean, b_mean = rng.standard_normal(5), rng.standard_normal(5)
    a = gaussian(40, a_mean, np.diag(a_std) @ turn, 1)
    b = gaussian(70, b_mean, np.diag(b_std) @ turn, 2)
    expected = ((a_mean - b_mean) ** 2).sum() + ((a_std - b_std) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_agrees_with_the_eigenvalues_of_the_covariance_product():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((30, 6)) @ rng.standard_normal((6, 6)), rng.standard_normal((50, 6))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", (3, 20, 200))
def test_frechet_of_a_set_to_itself_is_zero_even_where_covariances_are_singular(count):
    a = np.random.default_rng(count).standard_normal((count, 50)).astype(np.float32)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, a + 1) == pytest.approx(50, rel=1e-5)


def test_kid_is_torchmetrics_polynomial_mmd():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((24, 7)), rng.standard_normal((24, 7)) + 0.3
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, gamma=None, coef=1.0)
    assert kid(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_kid_separates_two_sets_and_averages_to_zero_on_one():
    def draw(seed: int, shift: float) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((40, 8)) + shift

    same = [kid(draw(2 * s, 0), draw(2 * s + 1, 0)) for s in range(60)]
    other = [kid(draw(2 * s, 0), draw(2 * s + 1, 0.7)) for s in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    assert min(other) > max(same)


def test_kid_is_not_fooled_by_frames_that_repeat_within_a_clip():
    def clips(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((20, 8)).repeat(6, axis=0)

    groups = np.arange(20).repeat(6)
    pairs = [(clips(2 * seed), clips(2 * seed + 1)) for seed in range(40)]
    naive = np.mean([kid(a, b) for a, b in pairs])
    grouped = [kid(a, b, groups_a=groups, groups_b=groups) for a, b in pairs]
    assert abs(np.mean(grouped)) < 3 * np.std(grouped) / np.sqrt(40)
    assert naive > 5 * abs(np.mean(grouped))


def test_the_kid_of_chosen_clips_is_that_of_their_frames():
    rng = np.random.default_rng(5)
    frames, style = rng.standard_normal((9, 4, 6)), rng.standard_normal((12, 6)) + 0.3
    distance = ClipKid(frames, style)
    for rows in (np.arange(9), np.array([3, 3, 5]), rng.integers(9, size=9)):
        chosen, clips = np.concatenate(frames[rows]), np.repeat(rows, 4)
        assert distance(rows) == pytest.approx(kid(chosen, style, groups_a=clips), rel=1e-9)
    with pytest.raises(ValueError, match="one group"):
        distance(np.array([2, 2]))


def test_frame_consistency_is_one_for_a_frozen_clip_and_zero_for_unrelated_frames():
    frozen = np.random.default_rng(0).standard_normal((1, 1, 9)).repeat(4, axis=1)
    turning = np.eye(9)[None, :4]
    found = frame_consistency(np.concatenate((frozen, turning)).astype(np.float32))
    np.testing.assert_allclose(found, [1, 0], atol=1e-6)


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(120):
        data = np.random.default_rng(seed).exponential(size=40)

        def mean(rows: np.ndarray, data: np.ndarray = data) -> float:
            return float(data[rows].mean())

        low, high = bootstrap(mean, 40, seed, level=0.9, resamples=100)
        covered += low <= 1.0 <= high
    assert 0.8 <= covered / 120 <= 0.97


def test_bootstrap_holds_the_number_it_belongs_to_for_a_biased_distance():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((30, 16)), rng.standard_normal((120, 16))

    def distance(rows: np.ndarray) -> float:
        return frechet_distance(a[rows], b)

    low, high = bootstrap(distance, 30, seed=0)
    assert low < distance(np.arange(30)) < high
    assert (low, high) == bootstrap(distance, 30, seed=0) != bootstrap(distance, 30, seed=1)
    wide = bootstrap(distance, 30, seed=0, level=0.99)
    assert wide[0] < low and high < wide[1]


def test_bootstrap_never_draws_one_unit_alone():
    drawn: list[int] = []

    def count(rows: np.ndarray) -> float:
        drawn.append(len(set(rows.tolist())))
        return 0.0

    bootstrap(count, 2, seed=0)
    bootstrap(count, 3, seed=0)
    assert min(drawn) == 2


def test_share_interval_has_width_at_the_ends():
    assert share_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert share_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert share_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((4, 3))), "two samples or more"),
        (lambda: kid(np.zeros((4, 3)), np.zeros((4, 5))), "same network"),
        (lambda: kid(np.ones((4, 3)), np.ones((4, 3)), groups_a=np.zeros(4)), "two groups"),
        (lambda: kid(np.ones((4, 3)), np.ones((4, 3)), groups_a=np.arange(3)), "number 4 samples"),
        (lambda: frame_consistency(np.zeros((2, 1, 3))), "two frames or more"),
        (lambda: bootstrap(lambda rows: 0.0, 1, seed=0), "`n`=1"),
        (lambda: share_interval(3, 2), "`hits`=3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
