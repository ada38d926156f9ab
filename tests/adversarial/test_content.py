"""The content loss: blind to what all frames have in common, and to nothing else."""

from __future__ import annotations

import pytest
import torch

from trainer.adversarial import frames as ends
from trainer.adversarial.features import build_features
from trainer.adversarial.frame_losses import DECAY, ContentLoss, deeper_half
from trainer.adversarial.frames import EndMaps
from trainer.families import load_model
from trainer.families.codec import FrameCodec
from trainer.paths import MINI


def maps(seed: int, count: int = 8) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 6, 8, 8, generator=g), torch.randn(count, 4, 4, 4, generator=g)]


def moved(given: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """The same frames with one pattern more on every one: a watermark, or a style's paper."""
    g = torch.Generator().manual_seed(seed)
    return [m + 3 * torch.randn(1, *m.shape[1:], generator=g) for m in given]


def test_a_pattern_on_all_frames_of_a_side_costs_nothing():
    plain, other = maps(0), maps(1)
    assert ContentLoss()(plain, plain).max() < 1e-5
    assert ContentLoss()(moved(plain, 5), moved(plain, 6)).max() < 1e-5
    torch.testing.assert_close(
        ContentLoss()(moved(plain, 5), moved(other, 6)), ContentLoss()(plain, other)
    )
    assert ContentLoss()(plain, other).min() > 1, "two maps, frames that have nothing in common"


def test_what_is_elsewhere_or_on_one_frame_only_costs():
    plain = maps(0)
    assert ContentLoss()([m.flip(-1) for m in plain], plain).min() > 1
    one = [m.clone() for m in plain]
    for level in one:
        level[0] += 3 * torch.randn(level.shape[1:], generator=torch.Generator().manual_seed(5))
    loss = ContentLoss()(one, plain)
    assert loss[0] > 0.3 and loss[0] > 3 * loss[1:].max()


def test_averages_follow_the_frames_and_go_on_from_their_state():
    content = ContentLoss()
    content(maps(0), maps(1))
    content(maps(2), maps(3))
    expected = DECAY * maps(0)[0].mean(0, keepdim=True) + (1 - DECAY) * maps(2)[0].mean(0, True)
    torch.testing.assert_close(content.kept["ours.0"], expected)
    again = ContentLoss()
    again.load_state_dict({name: value.clone() for name, value in content.state_dict().items()})
    torch.testing.assert_close(again(maps(4), maps(5)), content(maps(4), maps(5)))
    assert not torch.equal(ContentLoss()(maps(4), maps(5)), content(maps(4), maps(5)))


def test_the_gradient_reaches_the_students_maps_alone():
    ours, wanted = ([m.requires_grad_() for m in maps(seed)] for seed in (0, 1))
    ContentLoss()(ours, [m.detach() for m in wanted]).sum().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in ours)


@pytest.fixture(scope="module")
def mini():
    return load_model(str(MINI)), build_features("mini", None)


class Counted(FrameCodec):
    """The codec of the model, which counts the frames of each call."""

    def __init__(self, vae):
        super().__init__(vae)
        self.decoded: list[int] = []

    def decode_frames(self, latents, frames):
        self.decoded.append(frames.numel())
        return super().decode_frames(latents, frames)


def test_maps_of_ends_are_those_of_the_decoded_frames_and_are_made_once(mini):
    model, features = mini
    g = torch.Generator().manual_seed(0)
    clips = torch.randn(3, 4, 4, 8, 8, generator=g).half()
    codec = Counted(model.codec.vae)
    wanted = EndMaps(clips, 4, codec, features, torch.device("cpu"))
    rows, frames = torch.tensor([2, 0]), torch.tensor([[0, 3], [1, 2]])
    found = wanted(rows, frames)
    assert codec.decoded == [4, 4], "whole clips, of those that are asked for"
    with torch.no_grad():
        picked = torch.stack([clips[2, :, 0], clips[2, :, 3], clips[0, :, 1], clips[0, :, 2]])
        scaled = picked.float() / model.codec.vae.config.scaling_factor
        expected = deeper_half(features(model.codec.vae.decode(scaled).sample))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.float() - theirs).abs().max() < 2e-3 * theirs.abs().max()
    codec.decoded.clear()
    again = wanted(rows.flip(0), frames.flip(0))
    assert torch.equal(again[0], torch.cat((found[0][2:], found[0][:2])))
    other = wanted(rows[:1], torch.tensor([[3, 1]]))
    assert torch.equal(other[0][0], found[0][1])
    assert not codec.decoded


def test_more_maps_than_may_be_kept_are_made_again(mini, monkeypatch):
    model, features = mini
    codec = Counted(model.codec.vae)
    clips = torch.randn(3, 4, 2, 8, 8).half()
    wanted = EndMaps(clips, 2, codec, features, torch.device("cpu"))
    frames = torch.tensor([[0, 1]])
    first = wanted(torch.tensor([0]), frames)
    monkeypatch.setattr(ends, "KEPT_BYTES", 2 * sum(m.numel() * 2 for m in first))
    for row in (1, 2, 1, 0):
        again = wanted(torch.tensor([row]), frames)
    assert codec.decoded == [2] * 4, "0, 1, 2 and 0 again"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
