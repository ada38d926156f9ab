from __future__ import annotations

import numpy as np
import pytest
import torch

from minimaker.clips import mirrored, random_look, render_clips, roughen
from minimaker.looks import HELD_OUT, STYLES, public_video, random_style
from minimaker.truth import PROMPTS
from minimaker.world import (
    REVERSED,
    caption,
    random_scene,
    random_still,
    signed_distance,
)
from trainer.evaluate.truth import read_prompts
from trainer.mini.words import COLOURS, LOOKS, MOTIONS, SHAPES, parse_caption


def _scene(motion: str | None = None, seed: int = 3, shape: str = "circle"):
    return random_scene(np.random.default_rng(seed), shape=shape, motion=motion)


def test_captions_are_unique_and_parse_back_to_their_attributes():
    captions = read_prompts(PROMPTS)
    assert len(set(captions)) == len(SHAPES) * len(COLOURS) * len(MOTIONS)
    for m, motion in enumerate(MOTIONS):
        for s, shape in enumerate(SHAPES):
            for c, colour in enumerate(COLOURS):
                found = parse_caption(caption(shape, colour, motion))
                assert found == {"shape": s, "colour": c, "motion": m}


def test_a_still_caption_names_no_motion():
    still = random_still(np.random.default_rng(0), shape="star", colour="red")
    assert still.caption == "a red star"
    assert parse_caption(still.caption)["motion"] is None
    assert still.frames == 1


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_every_motion_does_what_its_name_says(motion, seed):
    scene = _scene(motion, seed)
    steps, growth = np.diff(scene.centres, axis=0), np.diff(scene.radii)
    axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}.get(
        motion.split()[-1], (None, 0)
    )
    if axis is not None:
        assert (sign * steps[:, axis] > 0.05).all() and np.allclose(steps[:, 1 - axis], 0)
    elif motion in ("growing", "shrinking"):
        assert ((growth > 0) == (motion == "growing")).all() and np.allclose(steps, 0)
    elif motion == "bouncing":
        assert np.allclose(steps[:, 0], 0) and (steps[:, 1] > 0).any() and (steps[:, 1] < 0).any()
    else:
        middle = np.linalg.solve(  # the circle through three of the centres holds all of them
            2 * (scene.centres[[2, 5]] - scene.centres[0]),
            (scene.centres[[2, 5]] ** 2).sum(1) - (scene.centres[0] ** 2).sum(),
        )
        assert np.ptp(np.hypot(*(scene.centres - middle).T)) < 1e-9


@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_stay_mostly_inside_the_frame(motion):
    for seed in range(40):
        scene = _scene(motion, seed)
        assert (scene.centres > 0.05).all() and (scene.centres < 0.95).all()
        assert (signed_distance(scene, 32)[:, 1:-1, 1:-1] < 0).any(axis=(1, 2)).all()


def test_reversing_is_its_own_inverse():
    assert all(REVERSED[REVERSED[motion]] == motion for motion in MOTIONS)


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_is_negative_inside_and_close_to_euclidean_outside(shape):
    scene = _scene("growing", shape=shape).window(7, 1)
    distance = signed_distance(scene, 64)[0]
    rows, columns = np.nonzero(distance < 0)
    area = len(rows) / 64**2
    disc = np.pi * scene.radii[0] ** 2
    assert 0.3 * disc < area < 1.3 * disc
    slope = np.hypot(*np.gradient(distance))
    assert np.median(slope) == pytest.approx(1, abs=0.02)


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = _scene(seed=5), _scene(seed=5), _scene(seed=6)
    assert np.array_equal(public_video(first), public_video(again))
    assert not np.array_equal(public_video(first), public_video(other))


@pytest.mark.parametrize("look", [public_video, *STYLES.values(), HELD_OUT, random_look])
@pytest.mark.parametrize("size", [64, 96])
def test_every_look_renders_rgb_frames_of_the_asked_size(look, size):
    frames = look(_scene("moving left"), size)
    assert frames.shape == (8, size, size, 3) and frames.dtype == np.uint8
    assert np.abs(np.diff(frames.astype(int), axis=0)).max() > 40  # the shape moves


def test_public_video_is_rough_where_styles_are_crisp():
    scene = _scene("growing")
    flicker = np.diff(public_video(scene)[:, :6, :6].astype(float), axis=0).std()
    assert flicker > 2
    assert np.diff(STYLES["poster"](scene)[:, :6, :6].astype(float), axis=0).std() == 0


def test_random_styles_differ_from_each_other_and_repeat_with_their_seed():
    scene = _scene("growing")
    pictures = [random_style(np.random.default_rng(seed))(scene) for seed in (1, 1, 2)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_clips_carry_the_labels_of_their_scenes():
    clips = render_clips(4, 10)
    rng = np.random.default_rng(4)
    for row in range(10):
        scene = random_scene(rng)
        rng.integers(1)  # the cut, which has one choice for a full clip
        assert COLOURS[clips.labels["colour"][row]] == scene.colour
        assert MOTIONS[clips.labels["motion"][row]] == scene.motion
        assert clips.labels["look"][row] == row % len(LOOKS)
    assert clips.pixels().shape == (10, 3, 8, 64, 64)
    assert clips.pixels().abs().max() <= 1


def test_mirrored_clips_get_the_label_of_what_they_show():
    clips = render_clips(0, 48, ["poster"])
    pixels, labels = mirrored(clips, torch.arange(48), torch.Generator().manual_seed(0))
    moves = 0
    for clip, motion in zip(pixels, labels["motion"], strict=True):
        name = MOTIONS[motion]
        if name not in ("moving left", "moving right"):
            continue
        changed = (clip - clip[:, :1, :1, :1]).abs().amax(0) > 0.3  # anything but background
        place = torch.arange(64.0)
        x = (changed.sum(1) * place).sum(1) / changed.sum((1, 2))
        assert (x[-1] > x[0]) == (name == "moving right")
        moves += 1
    assert moves > 5


def test_roughening_repeats_with_its_generator_and_keeps_the_clip_recognisable():
    pixels = render_clips(0, 6).pixels()
    first, again = (roughen(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, pixels)
    assert (first - pixels).abs().mean() < 0.2
