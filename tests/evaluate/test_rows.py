from __future__ import annotations

import numpy as np
import pytest
import torch

from minimaker.clips import save_weights
from minimaker.looks import STYLES, public_video
from minimaker.truth import PROMPTS, true_clips
from trainer.evaluate.networks import Measuring, judge_network
from trainer.evaluate.rows import MEASURES, References, measure, observe
from trainer.evaluate.truth import as_pixels, draw_prompts
from trainer.mini.networks import JUDGE_FILE, build_judge
from trainer.mini.reading import READ, build_scene_judge

CAPTIONS = draw_prompts(10, 0, PROMPTS)


@pytest.fixture(scope="module")
def network() -> Measuring:
    """Random features: enough to tell one look from another, not to read a caption."""
    judge = build_judge().eval()
    return Measuring("untrained", "0", judge.frame_features, judge.video_features, judge.hits)


@pytest.fixture(scope="module")
def poster():
    return as_pixels(true_clips(CAPTIONS, STYLES["poster"], 1))


@pytest.fixture(scope="module")
def public():
    return as_pixels(true_clips(CAPTIONS, public_video, 2))


def row_of(clips, network, references=None) -> dict:
    return measure(observe(clips, CAPTIONS, network), references or References(), seed=0)


def test_a_row_measured_against_itself_is_perfect(network, poster):
    seen = observe(poster, CAPTIONS, network)
    row = measure(seen, References(teacher_videos=seen.videos, teacher_flow=seen.flow), seed=0)
    assert row["flow"] == pytest.approx(seen.flow.mean()) and row["flow_ratio_ci"] == [1, 1]
    assert row["fd_teacher"] == pytest.approx(0, abs=1e-6)
    assert row["flow_ratio"] == pytest.approx(1)
    assert row["style_kid"] is None and row["fd_video"] is None


def test_flow_is_compared_with_the_teachers_and_with_that_of_true_style_clips(network, poster):
    seen = observe(poster, CAPTIONS, network)
    references = References(teacher_flow=seen.flow, style_flow=seen.flow / 2)
    row = measure(seen, references, seed=0)
    assert row["flow_ratio"] == pytest.approx(1)
    assert row["flow_style_ratio_ci"] == pytest.approx([2, 2])
    assert measure(seen, References(), seed=0)["flow_style_ratio"] is None


def test_style_and_video_distances_tell_the_looks_apart(network, poster, public):
    stills = true_clips(draw_prompts(12, 5, PROMPTS), STYLES["poster"], 7)
    style = network.images(as_pixels(stills)[:, :, 0])
    references = References(style_frames=style, public_videos=network.features(public)[1])
    own, other = row_of(poster, network, references), row_of(public, network, references)
    assert own["style_kid_ci"][1] < other["style_kid_ci"][0]
    assert other["fd_video"] == pytest.approx(0, abs=1e-9) and own["fd_video_ci"][0] > 1e-5
    for name in ("style_kid", "fd_video", "flow", "frame_consistency"):
        low, high = own[f"{name}_ci"]
        assert low < own[name] < high


def test_a_slower_clip_has_a_smaller_flow_and_a_larger_consistency(network, poster):
    slow = poster[:, :, [0, 0, 1, 1, 2, 2, 3, 3]]
    fast_row, slow_row = row_of(poster, network), row_of(slow, network)
    assert slow_row["flow"] < 0.7 * fast_row["flow"]
    assert slow_row["frame_consistency"] > fast_row["frame_consistency"]


def test_accuracies_have_honest_intervals_and_need_a_judge(network, poster):
    row = row_of(poster, network)
    assert set(MEASURES) <= set(row)
    for name in ("colour", "shape", "motion"):
        low, high = row[f"{name}_ci"]
        assert 0 <= low <= row[name] <= high <= 1 and high - low > 0.2
    blind = Measuring("blind", "0", network.frame_features)
    row = row_of(poster, blind)
    assert row["colour"] is None and "colour_ci" not in row and row["frame_consistency"] > 0


def test_of_two_things_in_a_clip_each_counts_half(network, poster):
    def half(clips, captions):
        return {"shape": np.array([0.5, 1.0] * 5), "camera": np.full(10, np.nan)}

    row = row_of(poster, Measuring("half", "0", network.frame_features, hits=half))
    low, high = row["shape_ci"]
    assert row["shape"] == 0.75 and 0.4 < low < 0.75 < high < 0.95
    assert row["camera"] is None and row["both"] is None


@pytest.mark.parametrize("build", [build_judge, build_scene_judge])
def test_a_judge_looks_at_clips_of_any_size(build, poster, tmp_path):
    judge = build().eval()
    save_weights(judge, tmp_path / JUDGE_FILE)
    found, few = judge_network(tmp_path), poster[:2]
    frames = few.transpose(1, 2).flatten(0, 1)
    large = torch.nn.functional.interpolate(
        frames, (judge.side, judge.side), mode="bilinear", antialias=True
    )
    seen, videos = found.features(few)
    assert seen.shape == (2, few.shape[2], 64) and videos.shape == (2, 64)
    assert np.allclose(seen.reshape(-1, 64), judge.frame_features(large).detach(), atol=2e-2)
    hits = found.hits(few, ["a red star growing", "fog"])
    assert set(hits) <= set(READ) and np.isnan(hits["shape"][1])
    assert hits["shape"][0] in (0, 1)
