from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from minimaker.looks import STYLES, public_video
from minimaker.truth import PROMPTS, bundled_look, true_clips
from trainer.evaluate.truth import as_frames, as_pixels, draw_prompts, read_prompts, style_pixels
from trainer.mini.words import style_folder


def test_prompts_come_in_an_order_of_the_seed_and_all_before_one_repeats(tmp_path):
    assert (
        draw_prompts(20, 3, PROMPTS) == draw_prompts(20, 3, PROMPTS) != draw_prompts(20, 4, PROMPTS)
    )
    assert draw_prompts(20, 3, PROMPTS) == draw_prompts(64, 3, PROMPTS)[:20]
    assert sorted(draw_prompts(240, 0, PROMPTS)) == sorted(read_prompts(PROMPTS))
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# mine\n\na cat\n  ein Bär \na dog runs\ta dog\n", encoding="utf-8")
    assert read_prompts(file) == ["a cat", "ein Bär", "a dog runs"]
    assert sorted(draw_prompts(6, 0, file)) == sorted(read_prompts(file) * 2)


def test_unusable_prompts_are_named(tmp_path):
    with pytest.raises(ValueError, match="`count`=1 is too few"):
        draw_prompts(1, 0, PROMPTS)
    with pytest.raises(ValueError, match="Cannot read the prompts"):
        draw_prompts(4, 0, tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes("Bär".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(tmp_path / "empty.txt")


def test_true_clips_show_their_captions():
    clips = true_clips(["a red square moving left", "a blue circle growing"], STYLES["poster"], 0)
    assert clips.shape == (2, 8, 64, 64, 3) and clips.dtype == np.uint8
    red, blue = ((clips == STYLES["poster"].palette[c]).all(axis=-1) for c in ("red", "blue"))
    assert red[0].any() and not red[1].any() and blue[1].any() and not blue[0].any()
    columns = [np.nonzero(frame)[1].mean() for frame in red[0]]
    assert all(np.diff(columns) < 0)
    areas = blue[1].sum(axis=(1, 2))
    assert all(np.diff(areas) > 0)
    with pytest.raises(ValueError, match="'a poem' names no clip"):
        true_clips(["a poem"], public_video, 0)


def test_style_images_are_cropped_to_the_clip(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (255, 0, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "grey.png")
    pixels = style_pixels(tmp_path, 40, 40)
    assert pixels.shape == (2, 3, 40, 40)
    torch.testing.assert_close(pixels[0], torch.ones(3, 40, 40))
    torch.testing.assert_close(pixels[1][:, :, 4:36].mean(dim=(1, 2)), torch.tensor([1.0, -1, -1]))


def test_only_bundled_style_folders_have_true_clips(tmp_path):
    assert bundled_look(style_folder("ink")) is STYLES["ink"]
    assert bundled_look(tmp_path / "ink") is None


def test_frames_and_pixels_are_inverse():
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(as_frames(as_pixels(clips)), clips)
