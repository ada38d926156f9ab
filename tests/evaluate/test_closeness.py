"""How far clips have come to a style, measured on few of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.evaluate.closeness import StyleReach, judge_look
from trainer.evaluate.truth import style_pixels, true_clips
from trainer.mini.looks import STYLES, public_video
from trainer.mini.styles import style_folder

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
    assert reach(flat(0.5)) == pytest.approx(0.75, abs=0.01)  # squared distances


def test_a_teacher_that_has_the_look_leaves_nothing_to_reach():
    assert StyleReach(mean_colour, torch.ones(2, 3, 8, 8), flat(1.0))(flat(0.5)) is None


@pytest.mark.parametrize("style", ["poster", "neon"])
def test_true_clips_of_a_style_are_near_it_and_those_of_another_are_not(style):
    images = style_pixels(style_folder(style), 64, 64)[:48]
    teacher = true_clips(CAPTIONS, public_video, 1)
    reach = StyleReach(judge_look(), images, teacher)
    other = STYLES["neon" if style == "poster" else "poster"]
    own = reach(true_clips(CAPTIONS, STYLES[style], 1))
    assert own > 0.6 and own > reach(true_clips(CAPTIONS, other, 1)) + 0.3
