"""Differentiable augmentation: draws first, then a pure function of pixels and draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainer.adversarial.augment import apply_augment, draw_augment, parse_policy

FULL = "color,translation,cutout"


def _pixels(count: int = 4, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _set(policy: str, count: int, **values: Tensor):
    """Draws that do nothing (the middle of each range, the hole aside) but for ``values``."""
    middle = torch.full((count,), 0.5)
    quiet = replace(
        draw_augment(policy, count, _generator()),
        brightness=middle,
        saturation=middle,
        contrast=middle,
        shift=torch.full((count, 2), 0.5),
    )
    return replace(quiet, **values)


def test_same_draws_give_the_same_result_and_leave_the_input_alone() -> None:
    pixels, draws = _pixels(), draw_augment(FULL, 4, _generator())
    before = pixels.clone()
    assert torch.equal(apply_augment(pixels, draws), apply_augment(pixels, draws))
    assert torch.equal(pixels, before)


def test_draws_follow_their_generator_and_nothing_else() -> None:
    first = draw_augment(FULL, 4, _generator(5))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = draw_augment(FULL, 4, _generator(5))
    other = draw_augment(FULL, 4, _generator(6))
    apply_augment(_pixels(), again)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.hole, again.hole) and torch.equal(first.shift, again.shift)
    assert not torch.equal(first.hole, other.hole)


def test_policy_does_not_shift_the_numbers_that_follow() -> None:
    one, two = _generator(), _generator()
    draw_augment(FULL, 3, one)
    draw_augment("", 3, two)
    assert torch.equal(torch.rand(2, generator=one), torch.rand(2, generator=two))


def test_empty_policy_is_the_identity() -> None:
    pixels = _pixels()
    assert apply_augment(pixels, draw_augment("", 4, _generator())) is pixels


@pytest.mark.parametrize("policy", ["color", "translation"])
def test_middle_draws_are_the_identity(policy: str) -> None:
    torch.testing.assert_close(apply_augment(_pixels(), _set(policy, 4)), _pixels())


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", FULL])
def test_gradient_flows_and_frames_stay_apart(policy: str) -> None:
    pixels = _pixels().requires_grad_()
    out = apply_augment(pixels, draw_augment(policy, 4, _generator()))
    assert out.shape == pixels.shape
    (gradient,) = torch.autograd.grad(out[2].square().sum(), pixels)
    assert gradient[2].abs().max() > 0 and gradient[[0, 1, 3]].abs().max() == 0


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_parameters_are_drawn_for_each_frame(policy: str) -> None:
    same = _pixels(1).expand(6, -1, -1, -1)
    out = apply_augment(same, draw_augment(policy, 6, _generator()))
    different = {tuple(frame.flatten().tolist()) for frame in out}
    assert len(different) > 1
    assert not any(torch.equal(frame, same[0]) for frame in out) or policy == "translation"


def test_real_and_fake_of_any_size_can_share_their_draws() -> None:
    draws = draw_augment("cutout", 2, _generator(3))
    small = apply_augment(torch.ones(2, 3, 16, 16), draws)
    large = apply_augment(torch.ones(2, 3, 32, 32), draws)
    torch.testing.assert_close(large.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.07, rtol=0)


def test_brightness_saturation_and_contrast_against_plain_formulas() -> None:
    pixels = _pixels(1)
    bright = apply_augment(pixels, _set("color", 1, brightness=torch.tensor([0.9])))
    torch.testing.assert_close(bright, pixels + 0.4)
    grey = apply_augment(pixels, _set("color", 1, saturation=torch.tensor([0.0])))
    torch.testing.assert_close(grey, pixels.mean(1, keepdim=True).expand_as(pixels))
    flat = apply_augment(pixels, _set("color", 1, contrast=torch.tensor([0.25])))
    torch.testing.assert_close(flat, (pixels - pixels.mean()) * 0.75 + pixels.mean())


@pytest.mark.parametrize(("draw", "rows"), [(0.0, -2), (0.5, 0), (0.9999, 2)])
def test_translation_shifts_whole_pixels_and_fills_with_grey(draw: float, rows: int) -> None:
    pixels = _pixels(1)
    shift = torch.tensor([[draw, 0.5]])
    moved = apply_augment(pixels, _set("translation", 1, shift=shift))
    expected = torch.zeros_like(pixels)
    for row in range(16):
        if 0 <= row - rows < 16:
            expected[:, :, row] = pixels[:, :, row - rows]
    assert torch.equal(moved, expected)


def test_translation_moves_columns_by_the_second_number() -> None:
    pixels = _pixels(1)
    moved = apply_augment(pixels, _set("translation", 1, shift=torch.tensor([[0.5, 0.9999]])))
    assert torch.equal(moved[..., 3:], pixels[..., :-3]) and moved[..., :3].abs().max() == 0


def test_cutout_greys_a_square_of_half_the_side() -> None:
    hole = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    out = apply_augment(torch.ones(2, 3, 16, 16), _set("cutout", 2, hole=hole))
    expected = torch.ones(2, 3, 16, 16)
    expected[0, :, 4:12, 4:12] = 0
    expected[1, :, :4, :4] = 0
    assert torch.equal(out, expected)


def test_policies_are_read_in_order() -> None:
    assert parse_policy(" cutout, color ") == ("cutout", "color")
    assert parse_policy("") == ()


def test_unknown_part_and_wrong_count_are_named() -> None:
    with pytest.raises(ValueError, match="'rotate'.*color, translation, cutout"):
        draw_augment("color,rotate", 2, _generator())
    with pytest.raises(ValueError, match="for 2 frames, got 4"):
        apply_augment(_pixels(4), draw_augment(FULL, 2, _generator()))
