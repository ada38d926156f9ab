"""The looks of the 128 px world: shapes, colours, canvases, public video and the style folders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minimaker.contact import write_folder, write_sheets
from minimaker.footage import OTHER, PUBLIC, public_video, random_clip
from minimaker.gallery import HELD_OUT, NAMED, STYLES, random_style
from minimaker.outlines import outline, shape_distance
from minimaker.paint import paint
from minimaker.scenes import SIZE, Scene, caption_scene, random_scene, random_still
from minimaker.style import Style
from trainer.mini.sentences import COLOURS, SHAPES
from trainer.mini.watermark import watermark_score

LOOKS = {**STYLES, "held out": HELD_OUT, "public": public_video}


def _still(shape: str, colour: str, seed: int = 0) -> Scene:
    """A still of one upright thing."""
    scene = random_still(np.random.default_rng(seed), pair=False, shape=shape, colour=colour)
    return replace(scene, tracks=(replace(scene.tracks[0], angle=0.0),))


def _clip(text: str, seed: int = 0) -> Scene:
    return caption_scene(text, np.random.default_rng(seed))


def _inside(scene: Scene, depth: float) -> np.ndarray:
    """Mask (128, 128) of what lies at least ``depth`` px inside the first thing."""
    patch = outline(scene.tracks[0], 0, scene.on_screen(scene.tracks[0]), 0)
    mask = np.zeros((3 * SIZE, 3 * SIZE), bool)
    height, width = patch.distance.shape
    top, left = SIZE + patch.top, SIZE + patch.left
    mask[top : top + height, left : left + width] = patch.distance < -depth
    return mask[SIZE : 2 * SIZE, SIZE : 2 * SIZE]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rounding", [0.0, 0.15])
def test_distances_are_negative_inside_and_euclidean(shape, rounding):
    steps = np.linspace(-60, 60, 241, dtype=np.float32)
    distance = shape_distance(shape, steps[None], steps[:, None], 36.0, rounding)
    area = (distance < 0).sum() / 4
    assert 0.5 < area / (np.pi * 36**2) < 1.05
    slope = np.hypot(*np.gradient(distance, 0.5))
    assert np.percentile(slope, 2) > 0.9 and np.percentile(slope, 98) < 1.02


def test_the_first_corner_points_up():
    for shape in ("triangle", "star"):
        steps = np.linspace(-50, 50, 201, dtype=np.float32)
        distance = shape_distance(shape, steps[None], steps[:, None], 36.0, 0.0)
        rows, columns = np.nonzero(distance < 0)
        assert abs(columns[rows == rows.min()].mean() - 100) < 1


@pytest.mark.parametrize("name", LOOKS)
def test_every_look_draws_frames_that_repeat_and_move(name):
    scene = _clip("a red star moving left and a white circle growing, the camera pans up")
    frames = LOOKS[name](scene)
    assert frames.shape == (17, SIZE, SIZE, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, LOOKS[name](scene))
    moved = np.abs(frames[0].astype(int) - frames[-1]).max(-1) > 25
    assert moved.mean() > 0.03


@pytest.mark.parametrize("name", ["poster", "cutout", "public"])
def test_edges_are_antialiased(name):
    scene = _still("circle", "blue")
    picture = LOOKS[name](scene)[0].astype(float)
    thing = picture[_inside(scene, 4)].mean(0)
    ground = picture[_inside(scene, -5) & ~_inside(scene, -3)].mean(0)
    rim = picture[_inside(scene, -0.4) & ~_inside(scene, 0.4)]
    between = (rim - ground) @ (thing - ground) / ((thing - ground) ** 2).sum()
    assert ((between > 0.2) & (between < 0.85)).mean() > 0.5


def _nearest_word(style: Style, colour: str, shape: str, seed: int) -> str:
    scene = _still(shape, colour, seed)
    mean = paint(scene, style)[0][_inside(scene, style.line.width / 2 + style.canvas.pixels)].mean(
        axis=0
    )
    return min(COLOURS, key=lambda word: np.abs(mean - style.palette[word]).sum())


@pytest.mark.parametrize("name", NAMED)
def test_colours_keep_their_names_in_named_styles(name):
    for number, colour in enumerate(COLOURS):
        for shape in SHAPES:
            assert _nearest_word(NAMED[name], colour, shape, number) == colour, shape


@pytest.mark.parametrize("part", range(4))
def test_colours_keep_their_names_in_random_styles(part):
    for seed in range(10 * part, 10 * part + 10):
        style = random_style(np.random.default_rng(seed))
        for number, colour in enumerate(COLOURS):
            shape = SHAPES[(number + seed) % len(SHAPES)]
            assert _nearest_word(style, colour, shape, seed) == colour, (seed, style)


def test_things_stand_out_from_the_ground_in_random_styles():
    for seed in range(40):
        scene = _still("square", COLOURS[seed % len(COLOURS)], seed)
        picture = paint(scene, random_style(np.random.default_rng(seed)))[0].astype(float)
        inside, near = _inside(scene, 4), ~_inside(scene, -12) & _inside(scene, -20)
        assert np.abs(picture[inside].mean(0) - picture[near].mean(0)).max() > 25, seed


def test_only_public_video_is_stamped():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, 5) for _ in range(12)]
    assert min(watermark_score(np.stack([public_video(s) for s in scenes]))) > 0.5
    others = [look(scene) for look in STYLES.values() for scene in scenes[:4]]
    others += [paint(scene, random_style(rng)) for scene in scenes]
    scores = watermark_score(np.stack(others))
    assert max(scores) < 0.4 and abs(scores.mean()) < 0.08


def test_the_canvas_is_still_in_styles_and_flickers_in_public_video():
    scene = _clip("a red star growing")
    for name, look in LOOKS.items():
        corner = look(scene)[:, :14, :14].astype(float)
        flicker = np.diff(corner, axis=0).std()
        assert flicker == 0 if name != "public" else 0.8 < flicker < 4, name


@pytest.mark.parametrize("name", [name for name in STYLES if name != "pixel"])
def test_a_pan_moves_the_ground(name):
    scene = _clip("a red circle, the camera pans right")
    frames = STYLES[name](scene).astype(float).mean(-1)[:, :, 4:-4]
    step = round(float(scene.pan[8, 0] - scene.pan[0, 0]) * SIZE)
    still = np.abs(frames[8] - frames[0]).mean()
    followed = np.abs(frames[8][:, :-step] - frames[0][:, step:]).mean()
    assert followed < 0.75 * still


def test_pixel_art_has_blocks_and_few_colours():
    frames = STYLES["pixel"](_clip("a red star growing"))
    blocks = frames.reshape(17, 32, 4, 32, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) <= 24


def test_random_styles_are_wide_and_none_is_like_the_held_out_one():
    styles = [random_style(np.random.default_rng(seed)) for seed in range(300)]
    assert all(style.canvas.halftone == 0 for style in styles)
    assert len({style.ground.kind for style in styles}) >= 11
    assert len({style.fill.kind for style in styles}) >= 9
    light = [np.mean(style.ground.colours) for style in styles]
    assert min(light) < 30 and max(light) > 200
    first, again = (random_style(np.random.default_rng(1)) for _ in range(2))
    assert first == again != random_style(np.random.default_rng(2))


def test_random_clips_are_half_public_and_repeat():
    rng = np.random.default_rng(0)
    names = []
    for _ in range(24):
        frames, caption, name = random_clip(rng, 2)
        assert frames.shape == (2, SIZE, SIZE, 3) and caption.startswith("a ")
        names.append(name)
    assert 6 <= names.count(PUBLIC) <= 18 and set(names) == {PUBLIC, OTHER}
    first, again = (random_clip(np.random.default_rng(3), 3) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and first[1:] == again[1:]


def test_style_folders_hold_captioned_stills(tmp_path):
    size = write_folder(tmp_path / "neon", STYLES["neon"], seed=1, count=12)
    pictures = sorted((tmp_path / "neon").glob("*.jpg"))
    assert len(pictures) == 12 and size == sum(f.stat().st_size for f in pictures) + sum(
        f.stat().st_size for f in (tmp_path / "neon").glob("*.txt")
    )
    for picture in pictures:
        text = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert text.removeprefix("a ").replace(" ", "_") == picture.stem.partition("_")[2]
        with Image.open(picture) as image:
            assert image.size == (SIZE, SIZE)


def test_sheets_are_written(tmp_path):
    files = write_sheets(tmp_path / "sheets", columns=2)
    assert len(files) == 5
    for file in files:
        with Image.open(file) as image:
            assert image.width == 2 * (SIZE + 4) + 4
