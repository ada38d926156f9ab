"""Discriminator heads: shapes, independence of samples, conditioning on text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.adversarial.heads import LOGIT_GRID, Discriminator

CHANNELS = (6, 12)


def _disc(seed: int = 0) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(CHANNELS, text_dim=5, head_channels=16, embedding=8)


def _inputs(count: int, sides: tuple[int, int] = (8, 3)) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(count)
    pairs = zip(CHANNELS, sides, strict=True)
    maps = [torch.randn(count, c, s, s, generator=generator) for c, s in pairs]
    return maps, torch.randn(count, 5, generator=generator)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_batch_size_gives_the_same_number_of_logits(count: int) -> None:
    maps, text = _inputs(count)
    assert _disc()(maps, text).shape == (count, LOGIT_GRID**2 + 3 * 3)


@pytest.mark.parametrize("sides", [(2, 2), (7, 5), (57, 4)])
def test_small_and_odd_maps_work(sides: tuple[int, int]) -> None:
    maps, text = _inputs(2, sides)
    logits = _disc()(maps, text)
    assert logits.shape == (2, sum(min(s, LOGIT_GRID) ** 2 for s in sides))
    assert logits.isfinite().all()


def test_logits_of_a_sample_do_not_depend_on_the_others() -> None:
    disc, (maps, text) = _disc().eval(), _inputs(9)
    together = disc(maps, text)
    for row in range(9):
        alone = disc([m[row : row + 1] for m in maps], text[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_flows_from_one_sample_to_another(training: bool) -> None:
    disc, (maps, text) = _disc().train(training), _inputs(4)
    inputs = [m.requires_grad_() for m in maps] + [text.requires_grad_()]
    gradients = torch.autograd.grad(disc(maps, text)[1].sum(), inputs)
    for gradient in gradients:
        assert gradient[1].abs().max() > 0
        assert gradient[[0, 2, 3]].abs().max() == 0


def test_every_trained_parameter_gets_a_gradient() -> None:
    disc, (maps, text) = _disc(), _inputs(3)
    disc(maps, text).square().mean().backward()
    without = [n for n, p in disc.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # The bias of a convolution right before a GroupNorm may be cancelled by it; nothing else may.
    assert all(name.endswith("bias") for name in without)


def test_forward_is_embed_then_judge() -> None:
    disc, (maps, text) = _disc().eval(), _inputs(3)
    embedded = disc.embed(maps)
    assert torch.equal(disc.judge(embedded, text), disc(maps, text))
    turned = disc.judge(embedded, text.roll(1, 0))
    assert (turned - disc(maps, text)).abs().max() > 1e-3


def test_scale_of_the_text_encoder_does_not_matter() -> None:
    disc, (maps, text) = _disc().eval(), _inputs(3)
    torch.testing.assert_close(disc(maps, text), disc(maps, 100 * text), rtol=1e-3, atol=1e-4)


def test_it_learns_to_tell_matching_from_mismatched_text() -> None:
    """Maps whose mean carries one of two words, judged with the right and with the wrong word."""
    disc = _disc()
    optimizer = torch.optim.AdamW(disc.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(2, 5, generator=generator)
    signs = torch.randn(2, 6, 1, 1, generator=generator)

    def batch() -> tuple[list[Tensor], Tensor]:
        label = torch.randint(2, (16,), generator=generator)
        noise = torch.randn(16, 6, 4, 4, generator=generator) * 0.3
        rest = torch.randn(16, 12, 2, 2, generator=generator)
        return [signs[label] + noise, rest], label

    for _ in range(60):
        maps, label = batch()
        embedded = disc.embed(maps)
        right = disc.judge(embedded, words[label])
        wrong = disc.judge(embedded, words[1 - label])
        loss = torch.relu(1 - right).mean() + torch.relu(1 + wrong).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    maps, label = batch()
    embedded = disc.eval().embed(maps)
    gap = disc.judge(embedded, words[label]).mean(1) - disc.judge(embedded, words[1 - label]).mean(
        1
    )
    assert (gap > 0).float().mean() == 1


def test_half_precision_features_are_accepted() -> None:
    maps, text = _inputs(2)
    assert _disc()([m.bfloat16() for m in maps], text.half()).dtype == torch.float32


def test_state_survives_a_round_trip_bit_for_bit() -> None:
    disc, (maps, text) = _disc(), _inputs(2)
    disc(maps, text)
    other = _disc(seed=1)
    other.load_state_dict(disc.state_dict())
    assert torch.equal(disc(maps, text), other(maps, text))


def test_wrong_inputs_are_named() -> None:
    disc, (maps, text) = _disc(), _inputs(2)
    with pytest.raises(ValueError, match="Got 1 feature maps for 2 heads"):
        disc(maps[:1], text)
    with pytest.raises(ValueError, match=r"shape \(2, 5\).*got \(2, 4\)"):
        disc(maps, text[:, :4])
    with pytest.raises(ValueError, match=r"shape \(2, 5\).*got \(1, 5\)"):
        disc(maps, text[:1])
