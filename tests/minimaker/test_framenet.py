from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minimaker.clips import render_clips, save_weights
from minimaker.framenet import framenet_accuracy, train_framenet
from minimaker.looks import HELD_OUT, STYLES, public_video
from minimaker.truth import FRAMENET
from trainer.mini.networks import FRAMENET_FILE, build_framenet, load_framenet


def _pixels(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_stages_and_heads_have_the_promised_shapes():
    net = build_framenet()
    shapes = [tuple(maps.shape) for maps in net.stages(_pixels())]
    assert shapes == [(3, c, s, s) for c, s in zip(net.channels, (32, 16, 8, 4), strict=True)]
    assert {k: tuple(v.shape) for k, v in net.heads(_pixels()).items()} == {
        "shape": (3, 5),
        "colour": (3, 6),
    }


def test_frames_of_a_batch_do_not_touch_each_other():
    net, pixels = build_framenet().train(), _pixels()
    for together, alone in zip(net.stages(pixels), net.stages(pixels[1:2]), strict=True):
        assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_gradients_reach_the_pixels_of_the_frozen_network():
    net = load_framenet(FRAMENET)
    assert not any(p.requires_grad for p in net.parameters())
    pixels = _pixels().requires_grad_()
    sum(maps.square().mean() for maps in net.stages(pixels)).backward()
    assert pixels.grad is not None and (pixels.grad.flatten(1).abs().amax(1) > 0).all()


def test_following_the_caption_loss_changes_what_a_frame_is_read_as():
    net, frames = load_framenet(FRAMENET), render_clips(8, 12, ["poster"], length=1)
    pixels, wanted = frames.pixels().squeeze(2), (frames.labels["colour"] + 1) % 6
    for _ in range(40):
        pixels = pixels.detach().requires_grad_()
        F.cross_entropy(net.heads(pixels)["colour"], wanted, reduction="sum").backward()
        assert pixels.grad is not None
        pixels = (pixels - 0.01 * pixels.grad.sign()).clamp(-1, 1)
    assert (net.heads(pixels)["colour"].argmax(1) == wanted).float().mean() > 0.9


def test_saving_and_loading_keeps_the_stages(tmp_path):
    net = build_framenet(7).eval()
    file = tmp_path / FRAMENET_FILE
    save_weights(net, file)
    assert file.stat().st_size < 1_000_000
    loaded = load_framenet(tmp_path).stages(_pixels())
    for kept, maps in zip(loaded, net.stages(_pixels()), strict=True):
        assert torch.allclose(kept, maps, atol=2e-2)


def test_missing_weights_say_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="framenet.safetensors are missing. Run `python -m"):
        load_framenet(tmp_path)


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("minimaker.framenet.RENDERED", 24)
    monkeypatch.setattr("minimaker.framenet.BATCH", 6)
    straight = train_framenet(tmp_path, None, 3)
    saved = train_framenet(tmp_path, None, 3)  # nothing left to do: read back from the folder
    for name, value in straight.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


@pytest.mark.parametrize(
    "look", [public_video, *STYLES.values(), HELD_OUT], ids=["public", *STYLES, "held out"]
)
def test_bundled_network_reads_frames_of_looks_it_never_saw(look):
    right = framenet_accuracy(load_framenet(FRAMENET), look, 150, seed=41)
    assert min(right.values()) >= 0.9, right
