from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from minimaker.looks import STYLES, public_video
from minimaker.world import random_scene
from trainer.evaluate.flow import clip_flow


def sliding(shift: float, side: int = 64, frames: int = 5) -> np.ndarray:
    """A smooth texture that moves right by ``shift`` pixels a frame: (1, F, side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    rng = np.random.default_rng(0)
    waves = rng.uniform(0.1, 0.45, (8, 2)) * rng.choice((-1, 1), (8, 2))
    phase = rng.uniform(0, 6, 8)
    clip = []
    for k in range(frames):
        parts = zip(waves, phase, strict=True)
        layers = [np.sin(u * (x - shift * k) + v * y + p) for (u, v), p in parts]
        clip.append(np.clip(127 + 22 * sum(layers), 0, 255).astype(np.uint8))
    return np.stack(clip)[None, ..., None].repeat(3, axis=-1)


@pytest.mark.parametrize("side", (64, 160))
def test_a_known_shift_is_measured_in_pixels_a_frame(side):
    for shift in (1.0, 2.5):
        found = clip_flow(sliding(shift, side))
        assert found.magnitude[0] == pytest.approx(shift, rel=0.12)
        assert found.moving[0] > 0.9


def test_a_frozen_clip_does_not_move():
    frozen = clip_flow(sliding(0))
    assert frozen.magnitude[0] < 0.02 and frozen.moving[0] == 0


def test_a_small_moving_shape_moves_few_pixels():
    scene = random_scene(np.random.default_rng(1), shape="circle", motion="moving right")
    scene = replace(scene, radii=scene.radii / 2)
    still = clip_flow(STYLES["poster"](scene)[[0] * 8][None])
    moves = clip_flow(STYLES["poster"](scene)[None])
    assert still.magnitude[0] < 0.05 < 0.2 < moves.magnitude[0]
    assert 0.02 < moves.moving[0] < 0.7


def test_clips_are_measured_one_by_one():
    both = clip_flow(np.concatenate((sliding(0), sliding(2))))
    assert both.magnitude.shape == both.moving.shape == (2,)
    assert both.magnitude[1] == clip_flow(sliding(2)).magnitude[0] > 10 * both.magnitude[0]


def test_input_that_is_no_batch_of_clips_is_named():
    with pytest.raises(ValueError, match=r"uint8 \(clips, frames.*got float64"):
        clip_flow(sliding(1) / 255)
    with pytest.raises(ValueError, match="two frames or more"):
        clip_flow(sliding(1)[:, :1])


def test_missing_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"):
        clip_flow(sliding(1))


def test_the_same_motion_in_another_look_agrees_and_another_does_not():
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng, motion=m) for m in ("moving left", "circling", "moving up")]
    looks = {
        name: clip_flow(np.stack([look(scene, 64) for scene in scenes]))
        for name, look in {**STYLES, "public": public_video}.items()
    }
    for name in STYLES:
        same = looks[name].agreement(looks["public"])
        assert same.shape == (3,) and same.min() > 0.25, name
        other = replace(looks["public"], field=np.roll(looks["public"].field, 1, axis=0))
        assert np.abs(looks[name].agreement(other)).max() < 0.6 * same.min(), name


def test_backwards_disagrees_and_a_frozen_clip_says_nothing():
    clip = sliding(2.0)
    forward, back = clip_flow(clip), clip_flow(clip[:, ::-1].copy())
    assert forward.agreement(forward)[0] == pytest.approx(1)
    assert forward.agreement(back)[0] < -0.95
    slow = clip_flow(sliding(1.0))
    assert forward.agreement(slow)[0] > 0.95, "it does not ask how fast"
    assert abs(clip_flow(np.zeros_like(clip)).agreement(forward)[0]) < 0.01
