from __future__ import annotations

import pytest
import torch

from minimaker.clips import random_look, render_clips, save_weights
from minimaker.judge import judge_accuracy, train_judge
from minimaker.looks import STYLES, public_video
from minimaker.truth import JUDGE
from trainer.mini.networks import ATTRIBUTES, FEATURES, JUDGE_FILE, build_judge, load_judge
from trainer.mini.words import LOOKS


def _pixels(batch: int = 2, frames: int = 8) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 4, 8, 12])
def test_logits_and_features_have_the_promised_shapes(frames):
    judge, pixels = build_judge().eval(), _pixels(2, frames)
    logits = judge(pixels)
    assert {name: tuple(v.shape) for name, v in logits.items()} == {
        name: (2, size) for name, size in ATTRIBUTES.items()
    }
    assert judge.read(pixels)[0]["look"].shape == (2, len(LOOKS))
    assert judge.video_features(pixels).shape == (2, FEATURES)
    assert judge.frame_features(pixels[:, :, 0]).shape == (2, FEATURES)


def test_a_clip_is_judged_the_same_alone_and_in_company():
    judge, pixels = load_judge(JUDGE), _pixels(3)
    alone = judge.video_features(pixels[1:2])
    assert torch.allclose(judge.video_features(pixels)[1:2], alone, atol=1e-4)


def test_the_order_of_frames_matters_to_video_features_only_by_motion():
    judge, pixels = load_judge(JUDGE), _pixels(2)
    forward, backward = judge.video_features(pixels), judge.video_features(pixels.flip(2))
    content, motion = (forward - backward).chunk(2, dim=1)
    assert content.abs().max() < 1e-3 < motion.abs().max()


def test_saving_and_loading_keeps_the_logits(tmp_path):
    judge, pixels = build_judge(7).eval(), _pixels()
    save_weights(judge, tmp_path / JUDGE_FILE)
    for name, logits in load_judge(tmp_path)(pixels).items():
        assert torch.allclose(logits, judge(pixels)[name], atol=2e-2)


def test_missing_weights_say_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="judge.safetensors are missing. Run `python -m"):
        load_judge(tmp_path)


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("minimaker.judge.RENDERED", 21)
    monkeypatch.setattr("minimaker.judge.BATCH", 4)
    straight = train_judge(tmp_path / "a", None, 3)
    saved = train_judge(tmp_path / "a", None, 3)  # nothing left to do: read back from the folder
    for name, value in straight.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


@pytest.mark.parametrize("look", [public_video, *STYLES.values()], ids=["public", *STYLES])
def test_bundled_judge_reads_held_out_clips(look):
    right = judge_accuracy(load_judge(JUDGE), [look], 60, seed=31)
    assert min(right.values()) >= 0.95, right


def test_bundled_judge_reads_styles_that_nobody_drew():
    right = judge_accuracy(load_judge(JUDGE), {"random": random_look}, 60, seed=32)
    assert min(right.values()) >= 0.85, right


def test_bundled_judge_tells_the_looks_apart_by_frame_features():
    judge = load_judge(JUDGE)
    first, second = (
        judge.frame_features(render_clips(seed, 40, ["public", "poster"], 1).pixels().squeeze(2))
        for seed in (1, 2)
    )
    public, poster = (first[k::2].mean(0) for k in (0, 1))
    again, other = (second[k::2].mean(0) for k in (0, 1))
    assert 3 * (public - again).norm() < (public - other).norm()
    assert 3 * (poster - other).norm() < (poster - again).norm()
