from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from minimaker.looks import COUNT, HELD_OUT, SIZE, regenerate, write_style_folder
from trainer.mini.words import COLOURS, SHAPES, style_folder

NAMES = ("poster", "ink", "neon")


@pytest.mark.parametrize("name", NAMES)
def test_bundled_folder_has_a_caption_for_every_picture(name):
    pictures = sorted(style_folder(name).glob("*.png"))
    assert len(pictures) == COUNT
    for picture in pictures:
        _, colour, shape = picture.stem.split("_")
        text = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert text == f"a {colour} {shape}"
        with Image.open(picture) as image:
            assert image.size == (SIZE, SIZE) and image.mode == "RGB"


@pytest.mark.parametrize("name", NAMES)
def test_bundled_folder_is_balanced_over_shapes_and_colours(name):
    pairs = Counter(tuple(p.stem.split("_")[1:]) for p in style_folder(name).glob("*.png"))
    assert len(pairs) == len(SHAPES) * len(COLOURS)
    assert max(pairs.values()) - min(pairs.values()) <= 1


def test_bundled_folders_are_small():
    files = [f for name in NAMES for f in style_folder(name).iterdir()]
    assert sum(f.stat().st_size for f in files) < 3_000_000


def test_regenerating_gives_the_bundled_pixels(tmp_path):
    (folder,) = regenerate(tmp_path, names=("neon",))
    bundled = sorted(style_folder("neon").iterdir())
    assert sorted(f.name for f in folder.iterdir()) == [f.name for f in bundled]
    for file in bundled:
        if file.suffix == ".txt":
            assert (folder / file.name).read_bytes() == file.read_bytes()
        else:
            with Image.open(file) as old, Image.open(folder / file.name) as new:
                assert np.array_equal(np.asarray(old), np.asarray(new))


def test_regenerating_removes_files_of_an_older_drawing(tmp_path):
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "99_old.png").write_bytes(b"")
    (folder,) = regenerate(tmp_path, names=("ink",))
    assert not (folder / "99_old.png").exists()


def test_a_style_drawn_at_run_time_depends_on_its_seed_only(tmp_path):
    first, again, other = (
        write_style_folder(tmp_path / str(i), HELD_OUT, 6, 64, seed)
        for i, seed in enumerate((1, 1, 2))
    )
    assert len(first) == 6
    for a, b in zip(first, again, strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()
    assert [f.read_bytes() for f in first] != [f.read_bytes() for f in other]


def test_unknown_styles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'oil' is not bundled; use one of poster, ink, neon"):
        style_folder("oil")
    with pytest.raises(ValueError, match="`count`=0 draws no picture"):
        write_style_folder(tmp_path, HELD_OUT, 0, 64, 1)
