"""Small, blurred and doubled images are found, good ones are not accused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from trainer.data.images import scan_images
from trainer.data.quality import BLURRED, examine, findings, sharpness
from trainer.mini.words import style_folder


@pytest.mark.parametrize("style", ["poster", "ink", "neon"])
def test_the_example_styles_are_sharp_and_without_copies(style):
    records = scan_images(style_folder(style)).used[:30]
    seen = {record.path: examine(record) for record in records}
    assert findings(records, seen, 64, 64) == []


def test_blurred_small_and_nearly_equal_images_are_named(tmp_path):
    source = sorted(style_folder("poster").glob("*.png"))[0]
    shutil.copyfile(source, tmp_path / "1.png")
    with Image.open(source) as image:
        rgb = image.convert("RGB")
    rgb.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "2 blurred.png")
    rgb.save(tmp_path / "3 again.jpg", quality=95)
    shutil.copyfile(source, tmp_path / "4 same.png")
    records = scan_images(tmp_path).used
    seen = {record.path: examine(record) for record in records}
    found = {(f.path.name, f.kind) for f in findings(records, seen, 256, 256)}
    assert {(r.path.name, "small") for r in records} <= found
    kinds = found - {(r.path.name, "small") for r in records}
    assert ("2 blurred.png", "blurred") in kinds
    assert {("3 again.jpg", "copy"), ("4 same.png", "copy")} <= kinds
    assert not any(name == "1.png" for name, _ in kinds)


def test_sharpness_is_about_edges_not_about_how_much_there_is():
    grey = np.zeros((64, 64), np.uint8)
    grey[:, 30:] = 200
    assert sharpness(grey) > 0.5
    assert sharpness(np.full((64, 64), 90, np.uint8)) == 1.0
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    assert sharpness(ramp) < BLURRED
