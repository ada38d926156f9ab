"""Learned heads: where they start, how their target follows, and one interface for every kind."""

from __future__ import annotations

import pytest
import torch

from trainer.motion import REPRESENTATIONS, build_representation, huber, representation_names
from trainer.motion.learned import HeadEma, LearnedRepresentation

LEARNED = ("learned", "learned_deep")


def clip(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def trained(name: str, seed: int = 0) -> LearnedRepresentation:
    """A head that has left the identity by one step, and its EMA copy half of the way."""
    representation = build_representation(name, 4, hidden=8, ema_decay=0.5, seed=seed)
    loss = huber(representation.student(clip()), clip(1), c=1.0).sum()
    parameters = representation.parameters()
    with torch.no_grad():
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter -= slope
    representation.update_ema()
    return representation


def test_every_name_of_the_method_can_be_built():
    assert set(representation_names()) == {
        "raw",
        "diff",
        "low_frequency",
        "high_frequency",
        "local_correlation",
        "global_correlation",
        "learned",
        "learned_deep",
    }
    for name in representation_names():
        assert build_representation(name, 4).name == name


@pytest.mark.parametrize("name", representation_names())
def test_a_perfect_prediction_has_no_loss(name):
    representation = build_representation(name, 4)
    loss = huber(representation.student(clip()), representation.target(clip()))
    assert torch.equal(loss, torch.zeros(2))
    other = huber(representation.student(clip()), representation.target(clip(1)))
    assert (other > 0.01).all()


@pytest.mark.parametrize("name", representation_names())
def test_gradient_reaches_the_prediction_and_not_the_target(name):
    representation = build_representation(name, 4)
    pred, target = clip().requires_grad_(), clip(1).requires_grad_()
    huber(representation.student(pred), representation.target(target)).sum().backward()
    assert pred.grad.abs().max() > 0
    assert target.grad is None


@pytest.mark.parametrize("name", LEARNED)
def test_a_new_head_is_the_raw_representation(name):
    representation = build_representation(name, 4)
    raw = build_representation("raw", 4)
    assert torch.equal(representation.student(clip()), raw.student(clip()))
    assert torch.equal(representation.target(clip()), raw.target(clip()))


@pytest.mark.parametrize(("name", "layers", "kernel"), [("learned", 2, 1), ("learned_deep", 5, 3)])
def test_layers_and_kernels_are_those_of_the_method(name, layers, kernel):
    weights = [p for p in build_representation(name, 4).parameters() if p.ndim == 4]
    assert len(weights) == layers
    assert all(w.shape[2:] == (kernel, kernel) for w in weights)
    assert weights[0].shape[1] == weights[-1].shape[0] == 4


@pytest.mark.parametrize("name", LEARNED)
def test_the_head_can_learn_and_sees_every_frame_by_itself(name):
    representation = trained(name)
    together = representation.student(clip())
    assert not torch.allclose(together, clip())
    for f in range(3):
        frame = clip()[:, :, f : f + 1]
        torch.testing.assert_close(representation.student(frame), together[:, :, f : f + 1])


@pytest.mark.parametrize("name", LEARNED)
def test_a_batch_of_two_equals_each_clip_alone(name):
    representation = trained(name)
    together = representation.target(clip())
    for i in range(2):
        torch.testing.assert_close(representation.target(clip()[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("name", LEARNED)
def test_half_precision_and_autocast_are_computed_in_float32(name):
    representation = trained(name)
    x = clip().bfloat16()
    expected = representation.student(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = representation.student(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


def test_the_target_moves_by_the_ema_only_when_told():
    representation = build_representation("learned", 4, hidden=8)
    for parameter in representation.parameters():
        torch.nn.init.ones_(parameter)
    old = {k: v.clone() for k, v in representation.state_dict().items() if k.startswith("ema.")}
    assert torch.equal(representation.target(clip()), clip())
    for _ in range(2):
        representation.update_ema()
    for key, before in old.items():
        expected = 0.95 * (0.95 * before + 0.05) + 0.05
        torch.testing.assert_close(representation.state_dict()[key], expected)


def test_ema_of_a_plain_module():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = HeadEma(module, decay=0.9)
    torch.nn.init.ones_(module.weight)
    ema.update(module)
    assert float(ema.module.weight) == pytest.approx(0.1)
    assert not ema.module.weight.requires_grad


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_ema_that_never_moves_is_refused(decay):
    with pytest.raises(ValueError, match="`ema_decay`=.* below 1"):
        build_representation("learned", 4, ema_decay=decay)


@pytest.mark.parametrize("name", LEARNED)
def test_the_optimizer_trains_the_head_and_not_its_copy(name):
    representation = build_representation(name, 4)
    assert all(p.requires_grad for p in representation.parameters())
    state = representation.state_dict()
    heads = {v.data_ptr() for k, v in state.items() if k.startswith("head.")}
    assert {p.data_ptr() for p in representation.parameters()} == heads
    assert {k.split(".")[0] for k in state} == {"head", "ema"}


@pytest.mark.parametrize("name", representation_names())
def test_state_is_a_round_trip(name):
    source = trained(name) if name in LEARNED else build_representation(name, 4)
    saved = {k: v.clone() for k, v in source.state_dict().items()}
    copy = build_representation(name, 4, hidden=8, seed=1)
    copy.load_state_dict(saved)
    assert torch.equal(copy.student(clip(2)), source.student(clip(2)))
    assert torch.equal(copy.target(clip(2)), source.target(clip(2)))
    if name in LEARNED:
        assert not torch.equal(copy.student(clip(2)), copy.target(clip(2)))


def test_an_optimizer_made_before_loading_still_trains_the_head():
    representation = build_representation("learned", 4, hidden=8)
    before = representation.parameters()
    representation.load_state_dict(trained("learned").state_dict())
    assert all(a is b for a, b in zip(before, representation.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "other"), [("diff", "learned"), ("learned", "diff"), ("learned", "learned_deep")]
)
def test_the_state_of_another_representation_is_refused(name, other):
    representation = build_representation(name, 4)
    before = {k: v.clone() for k, v in representation.state_dict().items()}
    with pytest.raises(ValueError, match=f"not one of the motion representation '{name}'"):
        representation.load_state_dict(build_representation(other, 4).state_dict())
    for key, tensor in representation.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="`motion_representation`='flow' is unknown; use raw"):
        build_representation("flow", 4)


def test_the_initial_head_comes_from_its_seed_alone():
    before = torch.random.get_rng_state()
    a, b, c = (build_representation("learned", 4, seed=s).parameters()[0] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_target_variance_shows_a_collapse():
    assert float(build_representation("raw", 4).target_variance(clip())) == pytest.approx(1)
    assert float(build_representation("learned", 4).target_variance(clip())) == pytest.approx(1)
    collapsed = build_representation("learned", 4, hidden=8, ema_decay=0.0)
    first, first_bias, last, last_bias = collapsed.parameters()
    with torch.no_grad():  # f(x) = -x: silu(x) - silu(-x) = x
        first.zero_()
        last.zero_()
        for i in range(4):
            first[2 * i, i], first[2 * i + 1, i] = 1, -1
            last[i, 2 * i], last[i, 2 * i + 1] = -1, 1
        first_bias.zero_()
        last_bias.zero_()
    collapsed.update_ema()
    assert float(collapsed.target_variance(clip())) < 1e-6


def test_to_moves_both_heads():
    representation = build_representation("learned", 4).to("meta")
    assert {v.device.type for v in representation.state_dict().values()} == {"meta"}
    assert build_representation("diff", 4).to("meta").name == "diff"


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_latents_of_another_kind_are_not_compared_with_the_rest(name):
    """The first latent of a causal autoencoder holds one frame, the others four."""
    alike = build_representation(name, 4, lead=1)
    x = clip()
    other = x.clone()
    other[:, :, 0] += 3.0
    compared = x if name == "raw" else x[:, :, 1:]
    assert torch.equal(alike.student(x), alike.student(other)) == (name != "raw")
    assert torch.equal(alike.target(x), REPRESENTATIONS[name](compared))
    if name != "raw":
        assert torch.equal(alike.student(x[:, :, :2]), x[:, :, 1:2]), "one by itself is compared"
