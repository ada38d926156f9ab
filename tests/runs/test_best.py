"""Which preview is the best: motion and style count together, and a clear lead is asked for."""

from __future__ import annotations

import pytest

from trainer.runs.events import best_step, preview_score


def preview(step: int, motion: float, style: float | None) -> dict:
    return {
        "kind": "preview",
        "step": step,
        "motion_kept": {"1": motion, "4": motion},
        "style_reached": {} if style is None else {"1": style, "4": style},
    }


def test_motion_and_style_multiply_and_too_much_motion_is_no_better_than_too_little():
    assert preview_score(preview(1, 1.0, 1.0)) == 1
    assert preview_score(preview(1, 0.5, 0.8)) == pytest.approx(0.4)
    assert preview_score(preview(1, 2.0, 0.8)) == pytest.approx(0.4)
    assert preview_score(preview(1, 1.0, -0.3)) == 0, "further from the style than the teacher"
    assert preview_score(preview(1, 0.0, 1.0)) == 0
    assert preview_score(preview(1, 1.0, None)) is None
    assert preview_score({"step": 1, "motion_kept": {"1": 1.0}, "style_reached": {"1": None}}) == 0


def test_frames_that_lost_their_content_score_nothing():
    lost = preview(1, 1.0, 0.8) | {"content_kept": {"1": 0.5, "4": -0.1}}
    assert preview_score(lost) == pytest.approx(0.2)


def test_an_earlier_state_needs_a_clear_lead():
    died = [preview(100, 0.9, 0.6), preview(200, 0.9, 0.8), preview(300, 0.3, 0.9)]
    assert best_step(died, (100, 200, 300)) == 200
    assert best_step(died, (100, 300)) == 100, "200 has no checkpoint any more"
    close = [preview(100, 0.9, 0.8), preview(200, 0.85, 0.8)]
    assert best_step(close, (100, 200)) == 200
    assert best_step([preview(100, 1, None)], (100,)) is None
    assert best_step([*close, preview(200, 0.2, 0.8)], (100, 200)) == 100, "measured again"


def test_motion_counts_by_its_way_whatever_outlines_do_to_its_size():
    dark = preview(1, 0.6, 0.8) | {"motion_agrees": {"1": 0.7, "4": 0.7}}
    assert preview_score(dark) == pytest.approx(0.56)
    frozen = preview(1, 0.1, 0.8) | {"motion_agrees": {"1": 0.7, "4": 0.7}}
    assert preview_score(frozen) == pytest.approx(0.2 * 0.56)
    against = preview(1, 1.0, 0.8) | {"motion_agrees": {"1": -0.2, "4": 0.0}}
    assert preview_score(against) == 0


def test_a_stamp_that_stays_costs_its_part():
    stamped = preview(1, 1.0, 1.0) | {"constants_left": {"1": 0.75}}
    assert preview_score(stamped) == pytest.approx((0.25 + 1) / 2)
    late = [preview(100, 1, 0.9) | {"constants_left": {"1": 0.9, "4": 0.9}}, preview(200, 1, 0.7)]
    assert best_step(late, (100, 200)) == 200
