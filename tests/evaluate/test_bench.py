from __future__ import annotations

import numpy as np
import pytest
import torch

from minimaker.looks import STYLES, public_video, random_style, write_style_folder
from minimaker.truth import PROMPTS, in_look, true_clips
from trainer.evaluate.bench import TRUE_CLIPS_PER_PROMPT, Bench, merged, sampling_options
from trainer.evaluate.networks import Measuring
from trainer.evaluate.rows import References, observe
from trainer.evaluate.truth import as_pixels, draw_prompts
from trainer.families import load_model
from trainer.mini.networks import build_judge
from trainer.mini.watermark import watermark_score


@pytest.fixture(scope="module")
def bench(untrained_folder) -> Bench:
    judge = build_judge().eval()
    network = Measuring("untrained", "0", judge.frame_features, judge.video_features, judge.hits)
    return Bench(load_model(str(untrained_folder)), network, draw_prompts(4, 0, PROMPTS))


def test_clips_are_seen_once_and_measured_against_several_references(bench, tmp_path):
    for name in ("ink", "neon"):
        write_style_folder(tmp_path / name, STYLES[name], 4, 64, seed=0)
    teacher = bench.watch("teacher", 2, "ddim", 3.0, lora=False)
    assert teacher.label == "teacher, 2 steps" and teacher.clips.shape == (4, 8, 64, 64, 3)
    assert teacher.seconds_per_clip is not None and teacher.seconds_per_clip > 0
    rows = {}
    for name in ("ink", "neon"):
        videos = bench.true_videos(in_look(STYLES[name]))
        assert len(videos) == TRUE_CLIPS_PER_PROMPT * 4
        references = References(bench.style_frames(tmp_path / name), style_videos=videos)
        rows[name] = bench.measure(teacher.seen, references)
        assert rows[name]["fd_teacher"] is None
    assert rows["ink"]["style_kid"] != rows["neon"]["style_kid"]
    assert rows["ink"]["flow_ci"] == rows["neon"]["flow_ci"]
    again = bench.measure(teacher.seen, References().with_teacher(teacher.seen))
    assert again["flow_ratio"] == 1 and again["fd_teacher"] == pytest.approx(0, abs=1e-6)


def test_true_clips_of_the_bench_are_not_those_it_compares_with(bench):
    fresh = bench.watch_true("public video", in_look(public_video))
    assert fresh.seconds_per_clip is None
    assert not any(
        (fresh.seen.videos[0] == row).all() for row in bench.true_videos(in_look(public_video))
    )


def test_without_a_lora_the_model_stays_as_it_is(bench):
    before = {k: v.clone() for k, v in bench.model.network.state_dict().items()}
    with merged(bench.model, None) as sampling:
        assert sampling == {} == sampling_options(None)
        assert all(torch.equal(before[k], v) for k, v in bench.model.network.state_dict().items())


def test_the_watermark_is_found_where_it_is_and_nowhere_else():
    captions = draw_prompts(48, 3, PROMPTS)
    scores = {
        name: watermark_score(true_clips(captions, look, 5)).mean()
        for name, look in {
            "public": public_video,
            **STYLES,
            **{str(s): random_style(np.random.default_rng(s)) for s in range(3)},
        }.items()
    }
    assert scores.pop("public") > 0.8
    assert max(map(abs, scores.values())) < 0.1
    with pytest.raises(ValueError, match="square"):
        watermark_score(np.zeros((1, 2, 32, 64, 3), np.uint8))


def test_a_faded_watermark_has_a_smaller_score_and_an_interval(bench):
    captions = bench.captions
    public, clean = (true_clips(captions, look, 5) for look in (public_video, STYLES["neon"]))
    mixed = (0.5 * public + 0.5 * clean).astype(np.uint8)
    low, middle, high = (watermark_score(c).mean() for c in (clean, mixed, public))
    assert abs(low) < middle < high
    row = bench.measure(observe(as_pixels(mixed), captions, bench.network), References())
    assert row["watermark"] == pytest.approx(middle, abs=1e-3)
    assert row["watermark_ci"][0] <= row["watermark"] <= row["watermark_ci"][1]
