"""Adversarial losses against naive formulas and known answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from trainer.adversarial.heads import Discriminator
from trainer.adversarial.losses import (
    GradientRatio,
    discriminator_loss,
    frozen,
    generator_loss,
    mismatch_permutation,
    r1_penalty,
)

NAIVE: dict[str, tuple[Callable[[float], float], ...]] = {
    "hinge": (lambda x: max(0.0, 1 - x), lambda x: max(0.0, 1 + x), lambda x: -x),
    "bce": (
        lambda x: -math.log(1 / (1 + math.exp(-x))),
        lambda x: -math.log(1 - 1 / (1 + math.exp(-x))),
        lambda x: -math.log(1 / (1 + math.exp(-x))),
    ),
    "wgan": (lambda x: -x, lambda x: x, lambda x: -x),
}


class LinearDiscriminator(nn.Module):
    """One logit a sample: ``<w, features> + <v, text>``; its gradient by the features is ``w``."""

    def __init__(self, inputs: int, text_dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(inputs, generator=generator))
        self.v = nn.Parameter(torch.randn(text_dim, generator=generator))

    def embed(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([f.flatten(1) for f in features], 1) @ self.w

    def judge(self, embedded: Tensor, text: Tensor) -> Tensor:
        return (embedded + text @ self.v)[:, None]


def _case(real: int = 3, fake: int = 2) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(7)

    def maps(n: int) -> list[Tensor]:
        return [torch.randn(n, 2, 2, 2, generator=g), torch.randn(n, 3, 2, 2, generator=g)]

    return (
        maps(real),
        torch.randn(real, 4, generator=g),
        maps(fake),
        torch.randn(fake, 4, generator=g),
    )


def _mean(formula: Callable[[float], float], logits: Tensor) -> float:
    values = [formula(x) for x in logits.flatten().tolist()]
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", NAIVE)
def test_losses_equal_naive_formulas(kind: str) -> None:
    disc, (real, text_real, fake, text_fake) = LinearDiscriminator(20, 4), _case()
    on_real = disc.judge(disc.embed(real), text_real)
    on_fake = disc.judge(disc.embed(fake), text_fake)
    of_real, of_fake, of_generator = NAIVE[kind]
    loss = discriminator_loss(disc, real, text_real, fake, text_fake, kind)
    assert loss.real.item() == pytest.approx(_mean(of_real, on_real), rel=1e-4)
    assert loss.fake.item() == pytest.approx(_mean(of_fake, on_fake), rel=1e-4)
    assert loss.total.item() == pytest.approx(loss.real.item() + loss.fake.item(), rel=1e-6)
    assert loss.mismatched.item() == loss.r1.item() == 0
    assert loss.real_logits_mean.item() == pytest.approx(on_real.mean().item(), rel=1e-5)
    assert loss.fake_logits_mean.item() == pytest.approx(on_fake.mean().item(), rel=1e-5)
    assert generator_loss(on_fake, kind).item() == pytest.approx(
        _mean(of_generator, on_fake), rel=1e-4
    )


def test_mismatched_text_is_a_negative_of_the_rows_left_in() -> None:
    disc, (real, text, fake, text_fake) = LinearDiscriminator(20, 4), _case()
    other, mask = text.roll(1, 0), torch.tensor([True, False, True])
    loss = discriminator_loss(
        disc, real, text, fake, text_fake, mismatched_text=other, mismatched_mask=mask
    )
    logits = disc.judge(disc.embed(real), other)[mask]
    assert loss.mismatched.item() == pytest.approx(_mean(NAIVE["hinge"][1], logits), rel=1e-5)
    expected = loss.real + (loss.fake + loss.mismatched) / 2
    torch.testing.assert_close(loss.total, expected)


def test_no_possible_mismatch_leaves_the_fakes_their_full_weight() -> None:
    disc, (real, text, fake, text_fake) = LinearDiscriminator(20, 4), _case()
    none = torch.zeros(3, dtype=torch.bool)
    loss = discriminator_loss(
        disc, real, text, fake, text_fake, mismatched_text=text, mismatched_mask=none
    )
    plain = discriminator_loss(disc, real, text, fake, text_fake)
    assert torch.equal(loss.total, plain.total) and loss.mismatched.item() == 0


def test_r1_of_a_linear_discriminator_is_the_norm_of_its_weights() -> None:
    disc, (real, text, fake, text_fake) = LinearDiscriminator(20, 4), _case()
    loss = discriminator_loss(disc, real, text, fake, text_fake, r1_weight=3.0)
    plain = discriminator_loss(disc, real, text, fake, text_fake)
    torch.testing.assert_close(loss.r1, disc.w.square().sum())
    torch.testing.assert_close(loss.total, plain.total + 1.5 * disc.w.square().sum())
    # d/dw of |w|^2 is 2w: the penalty is differentiated a second time.
    (gradient,) = torch.autograd.grad(loss.r1, disc.w)
    torch.testing.assert_close(gradient, 2 * disc.w.detach())


def test_r1_is_per_sample_and_uses_each_samples_own_text() -> None:
    torch.manual_seed(0)
    disc = Discriminator((2, 3), text_dim=4, head_channels=8, embedding=4).eval()
    real, text, fake, text_fake = _case(real=9)
    loss = discriminator_loss(disc, real, text, fake, text_fake, r1_weight=1.0)
    alone = []
    for row in range(9):
        one = [f[row : row + 1].clone().requires_grad_() for f in real]
        gradients = torch.autograd.grad(disc(one, text[row : row + 1]).mean(), one)
        alone.append(sum(g.square().sum().item() for g in gradients))
    assert loss.r1.item() == pytest.approx(sum(alone) / 9, rel=1e-3)
    loss.r1.backward()
    assert disc.heads[0].body[0][0].parametrizations.weight.original.grad.abs().max() > 0


def test_r1_double_backward_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    disc = Discriminator((2,), text_dim=4, head_channels=4, embedding=2).double().eval()
    maps = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    text = torch.randn(2, 4, dtype=torch.float64)
    weight = disc.cmaps[0].weight

    def penalty() -> Tensor:
        inputs = [maps.clone().requires_grad_()]
        return r1_penalty(disc(inputs, text), inputs)

    (gradient,) = torch.autograd.grad(penalty(), weight)
    step = 0.1  # R1 is quadratic in this weight, so the central difference is exact
    with torch.no_grad():
        weight[0, 0] += step
    above = penalty().item()
    with torch.no_grad():
        weight[0, 0] -= 2 * step
    below = penalty().item()
    assert gradient[0, 0].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_discriminator_step_sends_nothing_to_features_or_text() -> None:
    disc, (real, text, fake, text_fake) = LinearDiscriminator(20, 4), _case()
    everything = [*real, text, *fake, text_fake]
    for tensor in everything:
        tensor.requires_grad_()
    loss = discriminator_loss(
        disc, real, text, fake, text_fake, mismatched_text=text.roll(1, 0), r1_weight=1.0
    )
    loss.total.backward()
    assert all(tensor.grad is None for tensor in everything)
    assert disc.w.grad is not None and disc.v.grad is not None


def test_generator_step_leaves_a_frozen_discriminator_untouched() -> None:
    torch.manual_seed(0)
    disc = Discriminator((2, 3), text_dim=4, head_channels=8, embedding=4)
    disc.heads[1].body.eval()
    fake, text = _case()[2:]
    fake = [f.requires_grad_() for f in fake]
    before = {name: value.clone() for name, value in disc.state_dict().items()}
    with frozen(disc):
        loss = generator_loss(disc(fake, text))
    loss.backward()
    assert all(f.grad is not None and f.grad.abs().max() > 0 for f in fake)
    assert all(p.grad is None and p.requires_grad for p in disc.parameters())
    assert all(torch.equal(before[name], value) for name, value in disc.state_dict().items())
    assert disc.training and not disc.heads[1].body.training


def test_frozen_puts_everything_back_after_an_error() -> None:
    disc = LinearDiscriminator(20, 4)
    disc.v.requires_grad_(False)
    with pytest.raises(RuntimeError, match="boom"), frozen(disc):
        assert not disc.w.requires_grad and not disc.training
        raise RuntimeError("boom")
    assert disc.w.requires_grad and not disc.v.requires_grad and disc.training


@pytest.mark.parametrize(
    ("captions", "possible"),
    [
        (["a", "b", "c", "d", "e"], 5),
        (["a", "a", "b", "b", "c", "c", "c"], 7),
        (["a", "a", "b", "b"], 4),
        (["a", "a", "a", "a", "b"], 2),
        (["a", "a", "a"], 0),
        (["a"], 0),
        ([], 0),
    ],
)
def test_mismatch_never_pairs_equal_captions(captions: list[str], possible: int) -> None:
    for seed in range(20):
        mismatch = mismatch_permutation(captions, torch.Generator().manual_seed(seed))
        order = mismatch.permutation.tolist()
        assert sorted(order) == list(range(len(captions)))
        assert int(mismatch.possible.sum()) == possible
        for row, other in enumerate(order):
            assert mismatch.possible[row].item() == (captions[row] != captions[other])


def test_mismatch_is_random_but_follows_its_generator() -> None:
    captions = [f"caption {i}" for i in range(8)]
    orders = [
        tuple(mismatch_permutation(captions, torch.Generator().manual_seed(s)).permutation.tolist())
        for s in (0, 0, 1, 2, 3)
    ]
    assert orders[0] == orders[1] and len(set(orders)) == 4


def test_captions_that_differ_in_case_or_spaces_count_as_equal() -> None:
    mismatch = mismatch_permutation(["A red  star", "a red star "], torch.Generator())
    assert not mismatch.possible.any()


def test_gradient_ratio_reaches_its_goal() -> None:
    """Two losses whose gradients differ by far: weighted, the second is `ratio` x the first."""
    ratio, generator = GradientRatio(ratio=1.5), torch.Generator().manual_seed(0)
    for _ in range(60):
        latents = torch.randn(2, 4, 3, 4, 4, generator=generator).requires_grad_()
        consistency = latents.square().mean()
        adversarial = 300 * latents.sin().mean()
        g_cd, g_adv = (torch.autograd.grad(loss, latents)[0] for loss in (consistency, adversarial))
        weight = ratio.update(g_cd, g_adv)
    reached = (weight * g_adv.norm() / g_cd.norm()).item()
    assert reached == pytest.approx(1.5, rel=0.05)


def test_gradient_ratio_is_an_average_over_steps() -> None:
    ratio = GradientRatio(decay=0.9)
    one, ten = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 10.0])
    assert ratio.update(one, one).item() == pytest.approx(1)
    assert ratio.update(ten, one).item() == pytest.approx(0.9 + 0.1 * 10)


def test_one_vanishing_adversarial_gradient_does_not_throw_the_weight() -> None:
    ratio, g_cd, g_adv = GradientRatio(), torch.tensor([0.01]), torch.tensor([1.0])
    steady = [ratio.update(g_cd, g_adv).item() for _ in range(5)][-1]
    assert ratio.update(g_cd, 0 * g_adv).item() < 1.2 * steady


def test_gradient_ratio_is_clamped() -> None:
    g = torch.ones(3)
    assert GradientRatio(maximum=5.0).update(g, 0 * g).item() == 5
    assert GradientRatio(minimum=0.5).update(0 * g, g).item() == 0.5
    assert GradientRatio(ratio=0.0).update(g, g).item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_gradients_do_not_enter_the_average(bad: float) -> None:
    ratio, g = GradientRatio(), torch.ones(3)
    ratio.update(bad * g, g)
    assert ratio.norms is None
    before = ratio.update(2 * g, g).item()
    assert ratio.update(bad * g, g).item() == ratio.update(g, bad * g).item() == before == 2


def test_gradient_ratio_resumes_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    steps = [torch.randn(2, 2, 5, generator=generator).unbind() for _ in range(8)]
    straight, first, second = GradientRatio(), GradientRatio(), GradientRatio()
    expected = [straight.update(*pair) for pair in steps]
    for pair in steps[:4]:
        first.update(*pair)
    state = first.state_dict()
    second.load_state_dict(state)
    first.update(torch.ones(1), torch.zeros(1))
    assert all(
        torch.equal(second.update(*p), e) for p, e in zip(steps[4:], expected[4:], strict=True)
    )


def test_a_fresh_state_resumes_as_fresh() -> None:
    ratio = GradientRatio()
    ratio.update(torch.ones(2), torch.ones(2))
    ratio.load_state_dict(GradientRatio().state_dict())
    assert ratio.norms is None
    with pytest.raises(ValueError, match=r"one key 'norms', got \['value'\]"):
        ratio.load_state_dict({"value": None})


def test_wrong_settings_are_named() -> None:
    disc, case = LinearDiscriminator(20, 4), _case()
    with pytest.raises(ValueError, match="'lsgan'.*'hinge', 'bce', 'wgan'"):
        discriminator_loss(disc, *case, kind="lsgan")
    with pytest.raises(ValueError, match="'lsgan'"):
        generator_loss(torch.zeros(1, 1), "lsgan")
    with pytest.raises(ValueError, match="`decay`=1.0"):
        GradientRatio(decay=1.0)
