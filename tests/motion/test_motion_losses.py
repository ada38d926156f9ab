"""Losses on representations: identities, invariances, precision, and where gradients go."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trainer.motion.losses import (
    MOTION_LOSSES,
    huber,
    l2,
    low_pass_anchor,
    motion_energy,
    motion_energy_loss,
    motion_loss,
    self_anchor,
)

LOSSES = {
    "huber": huber,
    "l2": l2,
    "energy": motion_energy_loss,
    "low_pass_anchor": low_pass_anchor,
    "self_anchor": self_anchor,
}


def clip(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 5, 4, 8, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_clips_have_no_loss_and_others_have_one(name):
    same = LOSSES[name](clip(), clip())
    torch.testing.assert_close(same, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (LOSSES[name](clip(), clip(1)) > 0.01).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_prediction_and_not_the_target(name):
    pred, target = clip().requires_grad_(), clip(1).requires_grad_()
    LOSSES[name](pred, target).sum().backward()
    assert pred.grad.abs().amax(dim=(1, 2, 3, 4)).min() > 0
    assert target.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name):
    pred, target = clip()[:, :1, :2, :, :4], clip(1)[:, :1, :2, :, :4]
    pred = pred.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target), (pred,))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_two_equals_each_clip_alone(name):
    together = LOSSES[name](clip(), clip(1))
    assert together.shape == (2,)
    for i in range(2):
        alone = LOSSES[name](clip()[i : i + 1], clip(1)[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss(name, half):
    pred, target = clip().to(half), clip(1).to(half)
    loss = LOSSES[name](pred, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, LOSSES[name](pred.float(), target.float()))


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name):
    with pytest.raises(ValueError, match="must have one shape"):
        LOSSES[name](clip(), clip()[:1])


@pytest.mark.parametrize("c", [0.001, 0.05, 1.0])
def test_huber_is_its_formula(c):
    expected = ((clip() - clip(1)).square() + c**2).sqrt().sub(c).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(huber(clip(), clip(1), c), expected)


def test_huber_is_squared_below_c_and_linear_above():
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert float(huber(zero + 1e-4, zero, c=1.0)) == pytest.approx(0.5e-8, rel=1e-3)
    assert float(huber(zero + 100.0, zero, c=0.001)) == pytest.approx(100, rel=1e-3)


def test_l2_is_the_mean_square_of_each_sample():
    expected = torch.stack([functional.mse_loss(clip()[i], clip(1)[i]) for i in range(2)])
    torch.testing.assert_close(l2(clip(), clip(1)), expected)


def test_losses_by_name():
    assert set(MOTION_LOSSES) == {"huber", "l2"}
    assert torch.equal(motion_loss("huber", clip(), clip(1), 0.05), huber(clip(), clip(1), 0.05))
    assert torch.equal(motion_loss("l2", clip(), clip(1), 0.05), l2(clip(), clip(1)))
    with pytest.raises(ValueError, match="`loss`='l1' is unknown; use huber, l2"):
        motion_loss("l1", clip(), clip(1))


def test_energy_is_the_mean_difference_over_channels():
    x = torch.zeros(1, 2, 2, 1, 2)
    x[0, 0, 1, 0, 0] = 3.0
    x[0, 1, 1, 0, 0] = -1.0
    assert motion_energy(x).tolist() == [[[[2.0, 0.0]]]]


def test_energy_loss_is_blind_to_colour_and_to_a_constant_appearance():
    expected = motion_energy_loss(clip(), clip(1))
    permuted = clip()[:, [2, 0, 3, 1]]
    negative = -clip()
    elsewhere = clip() + clip(2)[:, :, :1]
    for pred in (permuted, negative, elsewhere):
        torch.testing.assert_close(motion_energy_loss(pred, clip(1)), expected)


def test_energy_loss_sees_where_the_motion_is_and_not_how_strong():
    moving = torch.zeros(1, 4, 3, 4, 4, dtype=torch.float64)
    moving[:, :, 1, 0, 0] = 1.0
    moved = moving.roll(2, dims=4)
    assert float(motion_energy_loss(moving * 3, moving)) == pytest.approx(0, abs=1e-4)
    assert float(motion_energy_loss(moved, moving)) > 1


def test_energy_loss_of_still_clips():
    still = clip()[:, :, :1].expand(-1, -1, 5, -1, -1).clone().requires_grad_()
    assert torch.equal(motion_energy_loss(still, still), torch.zeros(2, dtype=torch.float64))
    loss = motion_energy_loss(still, clip(1))
    torch.testing.assert_close(loss, torch.ones(2, dtype=torch.float64), rtol=0, atol=0.01)
    loss.sum().backward()
    assert torch.isfinite(still.grad).all()


@pytest.mark.parametrize(("anchor", "pool"), [(low_pass_anchor, 4), (self_anchor, 2)])
def test_anchors_are_the_huber_of_pooled_frames(anchor, pool):
    def pooled(x):
        return functional.avg_pool3d(x, (1, pool, pool))

    expected = huber(pooled(clip()), pooled(clip(1)), 0.05)
    torch.testing.assert_close(anchor(clip(), clip(1), c=0.05), expected)


@pytest.mark.parametrize("pool", [2, 4])
def test_anchors_leave_the_detail_free(pool):
    detail = torch.ones(4, 8, dtype=torch.float64)
    detail[::2] = -1  # its mean over every square is zero
    loss = low_pass_anchor(clip() + detail, clip(), pool)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12)
    assert (low_pass_anchor(clip() + 1, clip(), pool) > 0.9).all()


@pytest.mark.parametrize("pool", [0, 3])
def test_a_pool_that_does_not_divide_the_frame_is_refused(pool):
    with pytest.raises(ValueError, match=f"`pool`={pool} does not divide latents of 4x8"):
        low_pass_anchor(clip(), clip(1), pool)
