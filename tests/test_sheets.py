from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageChops, ImageFont

from trainer.sheets import PAPER, contact_sheet, enlarge, grid, side_by_side


def counting(frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A clip whose frame k is flat grey 10 + 20 k."""
    values = np.arange(10, 10 + 20 * frames, 20, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, height, width, 3)).copy()


def test_side_by_side_plays_in_step_and_starts_shorter_clips_again():
    short, long = counting(2), 255 - counting(6)
    frames = side_by_side([("short", short), ("long", long)], scale=4, loops=2)
    assert frames.shape[0] == 12 and frames.dtype == np.uint8
    assert frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    row = frames.shape[1] - 24 - 32  # the middle of the clips: 64 pixels high, 24 of margin below
    for k in range(12):
        assert frames[k, row, 24 + 32].tolist() == [10 + 20 * (k % 2)] * 3
        assert frames[k, row, 24 + 64 + 12 + 32].tolist() == [245 - 20 * (k % 6)] * 3


def test_every_pixel_of_a_clip_is_on_the_page():
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    frames = side_by_side([("a", clip)], scale=5)
    top = frames.shape[1] - 24 - 40
    np.testing.assert_array_equal(frames[:, top : top + 40, 24:74], enlarge(clip, 5))
    assert tuple(frames[0, 0, 0]) == PAPER


def test_small_clips_are_enlarged_by_a_whole_factor_on_their_own():
    small = side_by_side([("", counting(2, 64, 64))])
    assert small.shape[2] == 3 * 64 + 48
    assert side_by_side([("", counting(2, 256, 320))]).shape[2] == 320 + 48


def test_labels_and_captions_are_drawn():
    plain = side_by_side([("", counting(1))], scale=12)
    named = side_by_side([("1 step", counting(1))], scale=12)
    titled = side_by_side([("1 step", counting(1))], scale=12, title="a red star growing")
    assert plain.shape[1] < named.shape[1] < titled.shape[1]
    head = named[0, : named.shape[1] - 24 - 192 - 1]
    assert head.min() < 150 and head.mean() > 240, "dark text on a light page"


def test_a_long_prompt_is_wrapped_into_the_page():
    prompt = "a very long prompt " * 12
    frames = grid([(prompt, [("x" * 300, counting(1))])], scale=12)
    assert frames.shape[2] == 12 * 16 + 48
    assert (frames[0, :-220, -24:] == PAPER).all(), "no text runs into the margin"


def test_rows_of_unlike_columns_get_their_own_labels():
    clip = counting(2)
    shared = grid([("p", [("a", clip), ("b", clip)]), ("q", [("a", clip), ("b", clip)])], scale=4)
    unlike = grid([("p", [("a", clip), ("b", clip)]), ("q", [("c", clip)])], scale=4)
    assert unlike.shape[0] == shared.shape[0] == 2
    assert unlike.shape[1] > shared.shape[1] and unlike.shape[2] == shared.shape[2]


def test_contact_sheet_is_a_film_strip_in_time():
    sheet = np.asarray(contact_sheet([("", [("", counting(5))])], scale=4))
    middle = sheet[sheet.shape[0] // 2, 24 + 32 :: 66][:5, 0]
    assert middle.tolist() == [10, 30, 50, 70, 90]


def test_contact_sheet_keeps_first_and_last_of_a_longer_clip():
    sheet = np.asarray(contact_sheet([("", [("", counting(9))])], scale=4, max_frames=3))
    assert sheet[sheet.shape[0] // 2, 24 + 32 :: 66][:3, 0].tolist() == [10, 90, 170]


def test_contact_sheet_shows_its_labels():
    rows = [("a red star growing", [("1 step", counting(3)), ("2 steps", counting(3))])]
    other = [("a red star growing", [("1 step", counting(3)), ("9 steps", counting(3))])]
    assert ImageChops.difference(contact_sheet(rows), contact_sheet(other)).getbbox()
    gutter = ImageFont.load_default(16).getlength("2 steps")
    assert contact_sheet(rows).width > 3 * 96 + 48 + gutter


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid([]), "at least one row"),
        (lambda: grid([("a", [])]), "at least one clip"),
        (lambda: side_by_side([("a", counting(2))], loops=0), "`loops`=0"),
        (lambda: side_by_side([("a", counting(2) / 2.0)]), "`a` must be uint8"),
        (lambda: side_by_side([("a", counting(2))], scale=0), "`scale`=0"),
        (lambda: contact_sheet([("a", [("b", counting(2))])], max_frames=0), "`max_frames`=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
