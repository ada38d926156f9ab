"""The geometry of the 128 px world: sentences, motions, pairs and pans."""

from __future__ import annotations

import numpy as np
import pytest

from minimaker.scenes import (
    SIZE,
    caption_scene,
    random_scene,
    random_still,
    separation,
)
from trainer.mini.sentences import (
    CAMERAS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Thing,
    parse_sentence,
    sentence,
    still_sentence,
)

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SEEDS = range(12)


def _one(motion: str, seed: int, frames: int = 17):
    scene = random_scene(np.random.default_rng(seed), frames, pair=False, pan=False, motion=motion)
    return scene.tracks[0]


@pytest.mark.parametrize("words", ["", "wsnth style, ", "A painting of "])
def test_captions_parse_back_to_what_the_scene_shows(words):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        scene = random_scene(rng)
        assert parse_sentence(words + scene.caption) == (scene.things, scene.camera)
        seen |= {thing.motion for thing in scene.things} | {scene.camera}
    assert seen == {*MOTIONS, *CAMERAS, None}


def test_a_sentence_reads_like_english():
    things = (Thing("circle", "red", "moving left"), Thing("star", "blue", "growing"))
    text = sentence(things, "pans right")
    assert text == "a red circle moving left and a blue star growing, the camera pans right"
    assert still_sentence(text) == "a red circle and a blue star"
    assert parse_sentence("A  RED circle,\n blurred, moving   left") == (things[:1], None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a dog running", "names no thing of the mini world; write a colour .red, green"),
        ("", "names no thing"),
        ("a redcircle", "names no thing"),
        ("a red circle, a blue star, a white cross", "names 3 things"),
        ("a red circle growing moving left", "lets the circle move in two ways"),
        ("a red star, the camera pans up, the camera pans left", "pan twice"),
    ],
)
def test_other_texts_are_refused_with_an_example(text, problem):
    with pytest.raises(ValueError, match=problem) as error:
        caption_scene(text, np.random.default_rng(0))
    assert "as in 'a red circle moving left" in str(error.value)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Thing("cube", "red"), "no shape 'cube'; use one of circle"),
        (lambda: Thing("star", "pink"), "no colour 'pink'"),
        (lambda: Thing("star", "red", "sinking"), "no motion 'sinking'"),
        (lambda: sentence([Thing("star", "red")], "zooms"), "no camera 'zooms'"),
        (lambda: sentence([]), "one or two things, got 0"),
    ],
)
def test_unknown_words_are_refused(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("frames", [9, 17])
@pytest.mark.parametrize("way", WAYS)
def test_moving_things_travel_their_way(way, frames, seed):
    track = _one(f"moving {way}", seed, frames)
    steps = np.diff(track.centres, axis=0)
    along = steps @ np.array(WAYS[way])
    assert (along > 0).all() and along.sum() >= 0.3
    assert np.abs(steps).sum(1) == pytest.approx(along)
    assert np.ptp(track.radii) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_growing_and_shrinking_change_the_size_clearly(seed):
    for motion, sign in (("growing", 1), ("shrinking", -1)):
        track = _one(motion, seed)
        assert (np.diff(track.radii) * sign > 0).all()
        assert 2.5 < track.radii.max() / track.radii.min() < 3.2
        assert np.ptp(track.centres, axis=0).max() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_circling_goes_round_at_least_once(seed):
    path = _one("circling", seed).centres
    first = path[:3]
    middle = np.linalg.solve(
        2 * (first[1:] - first[0]), (first[1:] ** 2).sum(1) - (first[0] ** 2).sum()
    )
    away = path - middle
    assert np.ptp(np.hypot(*away.T)) < 1e-9
    turns = np.ptp(np.unwrap(np.arctan2(away[:, 1], away[:, 0]))) / (2 * np.pi)
    assert 1 < turns < 2


@pytest.mark.parametrize("seed", SEEDS)
def test_bouncing_hops_two_or_three_times(seed):
    track = _one("bouncing", seed)
    x, y = track.centres.T
    assert np.ptp(x) == 0 and np.ptp(y) > 0.3
    rises = np.diff(np.sign(np.diff(y))) > 0  # from rising on the screen to falling
    assert 2 <= rises.sum() <= 3


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_pan_carries_standing_things_the_other_way(camera):
    scene = caption_scene(f"a red star, the camera {camera}", np.random.default_rng(1))
    seen = scene.on_screen(scene.tracks[0])
    drift = (seen[-1] - seen[0]) @ np.array(WAYS[camera.removeprefix("pans ")])
    assert drift <= -0.2
    assert np.ptp(scene.tracks[0].centres, axis=0).max() == 0
    assert (scene.pan * SIZE == np.round(scene.pan * SIZE)).all()


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("way", WAYS)
def test_moving_things_keep_their_way_on_screen_while_the_camera_pans(way, camera):
    for seed in SEEDS:
        text = f"a red star moving {way} and a blue circle growing, the camera {camera}"
        scene = caption_scene(text, np.random.default_rng(seed))
        track = scene.tracks[0]
        for path in (track.centres, scene.on_screen(track)):
            assert (path[-1] - path[0]) @ np.array(WAYS[way]) >= 0.3


def test_things_stay_on_screen():
    rng = np.random.default_rng(2)
    for _ in range(300):
        scene = random_scene(rng)
        for track in scene.tracks:
            seen = scene.on_screen(track)
            assert (seen > 0.02).all() and (seen < 0.98).all()


def test_two_things_differ_and_rarely_hide_each_other():
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng, pair=True) for _ in range(300)]
    for scene in scenes:
        first, second = scene.things
        assert first.shape != second.shape and first.colour != second.colour
    apart = np.array([separation(*scene.tracks) for scene in scenes])
    assert (apart < 0).mean() < 0.1
    assert apart.min() > -0.2
    pairs = {tuple(thing.motion for thing in scene.things) for scene in scenes}
    assert len(pairs) > 50  # drawn independently


def test_pairs_and_pans_are_as_frequent_as_announced():
    rng = np.random.default_rng(4)
    scenes = [random_scene(rng) for _ in range(600)]
    assert 0.25 < np.mean([len(scene.tracks) == 2 for scene in scenes]) < 0.35
    assert 0.11 < np.mean([scene.camera is not None for scene in scenes]) < 0.19


def test_stills_name_no_motion():
    rng = np.random.default_rng(5)
    stills = [random_still(rng) for _ in range(60)]
    assert all(still.frames == 1 for still in stills)
    assert all(thing.motion is None for still in stills for thing in still.things)
    assert {len(still.things) for still in stills} == {1, 2}
    star = random_still(rng, pair=False, shape="star", colour="red")
    assert star.caption == "a red star"


def test_what_is_asked_for_is_drawn():
    scene = random_scene(
        np.random.default_rng(6),
        pair=False,
        pan="pans up",
        shape="cross",
        colour="green",
        motion="circling",
    )
    assert scene.caption == "a green cross circling, the camera pans up"


def test_a_scene_shows_its_caption():
    for motion in MOTIONS:
        for shape, colour in zip(SHAPES, COLOURS, strict=False):
            text = f"a {colour} {shape} {motion}"
            assert caption_scene(text, np.random.default_rng(7)).caption == text


def test_the_same_seed_gives_the_same_scene_and_a_window_is_a_part_of_it():
    first, again, other = (random_scene(np.random.default_rng(s), pan=True) for s in (8, 8, 9))
    assert first.caption == again.caption and first.seed == again.seed
    assert np.array_equal(first.tracks[0].centres, again.tracks[0].centres)
    assert first.seed != other.seed
    part = first.window(4, 9)
    assert part.frames == 9 and part.caption == first.caption
    track = first.tracks[0]
    assert np.array_equal(part.on_screen(part.tracks[0]), first.on_screen(track)[4:13])
    assert np.array_equal(part.tracks[0].radii, track.radii[4:13])
