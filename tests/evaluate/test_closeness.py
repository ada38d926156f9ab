"""How far clips have come to a style, measured on few of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimaker.looks import STYLES, public_video
from minimaker.truth import JUDGE, true_clips
from trainer.evaluate.closeness import (
    ConstantsLeft,
    ContentKept,
    StyleReach,
    energy_distance,
    judge_look,
)
from trainer.evaluate.truth import style_pixels
from trainer.mini.watermark import watermark
from trainer.mini.words import style_folder

CAPTIONS = ["a red circle moving right", "a blue star growing"]


def mean_colour(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.mean(dim=(2, 3))


def flat(colour: float, count: int = 2) -> np.ndarray:
    return np.full((count, 3, 8, 8, 3), round(255 * colour), np.uint8)


def test_the_teacher_is_at_nought_and_the_images_at_one():
    images = torch.ones(4, 3, 8, 8)
    reach = StyleReach(mean_colour, images, flat(0.0))
    assert reach(flat(0.0)) == pytest.approx(0.0)
    assert reach(flat(1.0)) == pytest.approx(1.0)
    assert reach(flat(0.5)) == pytest.approx(0.5, abs=0.01)


def test_a_teacher_that_has_the_look_leaves_nothing_to_reach():
    assert StyleReach(mean_colour, torch.ones(2, 3, 8, 8), flat(1.0))(flat(0.5)) is None


@pytest.mark.parametrize("style", ["poster", "neon"])
def test_true_clips_of_a_style_are_near_it_and_those_of_another_are_not(style):
    images = style_pixels(style_folder(style), 64, 64)[:48]
    teacher = true_clips(CAPTIONS, public_video, 1)
    reach, content = (
        StyleReach(judge_look(JUDGE), images, teacher),
        ContentKept(judge_look(JUDGE), teacher),
    )
    other = STYLES["neon" if style == "poster" else "poster"]
    own = true_clips(CAPTIONS, STYLES[style], 1)
    assert reach(own) > 0.6 and reach(own) > reach(true_clips(CAPTIONS, other, 1)) + 0.3
    assert content(own) > 0.5


@pytest.mark.parametrize("kind", ["grey", "the images' mean", "blobs"])
def test_frames_without_a_picture_are_no_style(kind):
    images = style_pixels(style_folder("poster"), 64, 64)[:48]
    teacher = true_clips(CAPTIONS, public_video, 1)
    clips = np.full_like(teacher, 190)
    if kind == "the images' mean":
        clips[:] = ((images.mean(0).permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    elif kind == "blobs":
        noise = torch.randn(len(clips) * clips.shape[1], 3, 5, 5, generator=torch.manual_seed(0))
        large = F.interpolate(noise, clips.shape[2:4], mode="bicubic") * 25 + 190
        clips[:] = large.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy().reshape(clips.shape)
    reach, content = (
        StyleReach(judge_look(JUDGE), images, teacher),
        ContentKept(judge_look(JUDGE), teacher),
    )
    assert reach(clips) < 0.2
    assert abs(content(clips)) < 0.2


def test_a_blurred_teacher_keeps_its_content_and_reaches_nothing():
    images = style_pixels(style_folder("poster"), 64, 64)[:48]
    teacher = true_clips(CAPTIONS, public_video, 1)
    frames = torch.from_numpy(teacher).flatten(0, 1).permute(0, 3, 1, 2).float()
    blurred = F.avg_pool2d(frames, 5, 1, 2, count_include_pad=False).byte().permute(0, 2, 3, 1)
    clips = blurred.numpy().reshape(teacher.shape)
    assert ContentKept(judge_look(JUDGE), teacher)(clips) > 0.7
    assert StyleReach(judge_look(JUDGE), images, teacher)(clips) < 0.2


def test_equal_frames_have_no_content_to_keep():
    assert ContentKept(mean_colour, flat(0.5))(flat(1.0)) is None


def test_the_energy_distance_is_unbiased():
    samples = torch.randn(2, 400, 3, generator=torch.manual_seed(0))
    assert abs(energy_distance(*samples)) < 0.05
    assert energy_distance(samples[0], samples[1] + 2) > 1


def test_a_stamp_is_seen_in_whatever_look_and_a_style_without_it_is_free():
    captions = ["a red star moving left", "a blue circle growing", "a green cross moving up"]
    teacher = true_clips(captions, public_video, seed=4)
    left = ConstantsLeft(teacher)
    assert left(teacher) == pytest.approx(1)
    again = left(true_clips(captions, public_video, seed=5))
    assert again == pytest.approx(1, abs=0.3)
    for name, look in STYLES.items():
        clean = true_clips(captions, look, seed=4)
        assert left(clean) < 0.25, name
        stamped = clean.astype(np.float32)
        stamped += 90 * watermark()[..., None] * (1 - 2 * (stamped.mean() > 127))
        assert left(np.clip(stamped, 0, 255).astype(np.uint8)) != pytest.approx(
            left(clean), abs=0.1
        )


def test_clips_without_anything_in_common_have_no_constants():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (3, 4, 64, 64, 3)).astype(np.uint8)
    assert ConstantsLeft(noise)(noise) is None
    one = true_clips(["a red star growing"], public_video, seed=1)
    assert ConstantsLeft(one)(one) is None
