from __future__ import annotations

import numpy as np
import pytest

from trainer.data.framing import cut_strength, find_bars, fit


def picture(height: int, width: int, value: int = 120) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


@pytest.mark.parametrize(
    ("padding", "box"),
    [
        (((24, 24), (0, 0)), (0, 25, 96, 71)),
        (((0, 0), (24, 24)), (25, 0, 71, 96)),
        (((16, 16), (16, 16)), (17, 17, 79, 79)),
        (((0, 0), (0, 0)), None),
        (((20, 0), (0, 0)), None),
    ],
)
def test_bars_on_both_sides_are_found(
    padding: tuple[tuple[int, int], tuple[int, int]], box: tuple[int, int, int, int] | None
) -> None:
    (top, bottom), (left, right) = padding
    inner = picture(96 - top - bottom, 96 - left - right)
    assert find_bars(np.pad(inner, padding, constant_values=16)[None]) == box


def test_dark_scene_at_one_bar_does_not_widen_the_cut() -> None:
    inner = picture(48, 96)
    inner[-14:] = 10
    assert find_bars(np.pad(inner, ((24, 24), (0, 0)))[None]) is None
    inner[-1] = 60
    assert (
        find_bars(np.pad(inner, ((24, 24), (0, 0)))[None]) is None
    )  # 14 dark rows above a thin line
    inner[-14:] = 60
    assert find_bars(np.pad(inner, ((24, 24), (0, 0)))[None]) == (0, 25, 96, 71)


def test_object_on_black_and_black_video_have_no_bars() -> None:
    y, x = np.mgrid[:96, :96]
    disc = np.where((x - 48) ** 2 + (y - 48) ** 2 < 30**2, 200, 0).astype(np.uint8)
    assert find_bars(disc[None]) is None
    assert find_bars(picture(96, 96, 0)[None]) is None


def test_object_that_sweeps_over_black_has_no_bars_and_a_dark_frame_does_not_hide_them() -> None:
    sweep = np.zeros((7, 96, 96), np.uint8)
    for number, frame in enumerate(sweep):
        frame[30:66, 14 * number : 14 * number + 14] = 200
    assert find_bars(sweep) is None
    film = np.repeat(np.pad(picture(48, 96), ((24, 24), (0, 0)))[None], 7, axis=0)
    film[:3] = 0
    assert find_bars(film) == (0, 25, 96, 71)


def test_fit_takes_the_centre_with_the_aspect_kept() -> None:
    x = np.tile(np.linspace(0, 240, 128, dtype=np.float32)[None, :, None], (64, 1, 3))
    found = fit(x.astype(np.uint8), 32, 32, None, 1.0)
    assert found.shape == (32, 32, 3)
    expected = np.linspace(0, 240, 128).reshape(64, 2).mean(axis=1)[16:48]
    assert np.abs(found[16, :, 0] - expected).max() <= 2


def test_fit_of_wide_pixels_sees_their_true_shape() -> None:
    disc_seen_at_half_width = np.zeros((64, 64, 3), np.uint8)
    y, x = np.mgrid[:64, :64]
    disc_seen_at_half_width[(2 * (x - 31.5)) ** 2 + (y - 31.5) ** 2 < 20**2] = 255
    found = fit(disc_seen_at_half_width, 64, 64, None, 2.0)[..., 0] > 127
    assert abs(int(found.any(axis=0).sum()) - int(found.any(axis=1).sum())) <= 2
    assert abs(int(found.any(axis=0).sum()) - 40) <= 2


def test_fit_stays_inside_the_box() -> None:
    pixels = np.full((96, 96, 3), 255, np.uint8)
    pixels[25:71, :] = 50
    assert (fit(pixels, 40, 64, (0, 25, 96, 71), 1.0) == 50).all()
    assert (fit(pixels, 64, 40, (0, 25, 96, 71), 1.0) == 50).all()
    with pytest.raises(ValueError, match="inside a picture"):
        fit(pixels, 32, 32, (0, 0, 200, 200), 1.0)


def test_one_jump_is_a_cut_and_steady_motion_is_none() -> None:
    def clip(levels: list[int]) -> np.ndarray:
        return np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])

    assert cut_strength(clip([50, 50, 50, 200, 200])) == pytest.approx(150 / 255)
    assert cut_strength(clip([0, 60, 120, 180, 240])) == 0
    assert cut_strength(clip([50, 50, 50, 50, 50])) == 0
    assert cut_strength(clip([50, 200])) == 0
