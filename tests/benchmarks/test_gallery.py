"""The gallery, of a tiny Wan whose folder has styles and prompts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import wan_files
from PIL import Image

from trainer.mini.words import style_folder

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gallery  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = wan_files.save_small(tmp_path_factory.mktemp("gallery") / "small wän")
    prompts = "a red star growing\na blue circle\n"
    (folder / "prompts.txt").write_text(prompts, encoding="utf-8")
    for name in ("poster", "ink"):
        shutil.copytree(style_folder(name), folder / "styles" / name)
    return folder


def test_each_style_has_a_moving_page_and_film_strips_and_is_trained_once(folder, tmp_path):
    options = ["--model", str(folder), "--steps", "1", "--base-steps", "2", "--out", str(tmp_path)]
    gallery.main([*options, "--styles", "poster"])
    with Image.open(tmp_path / "poster.webp") as page:
        assert page.n_frames == 5 and page.width > 5 * 2 * 32
        assert page.height > gallery.PROMPTS * 2 * 32
    with Image.open(tmp_path / "poster.png") as strips:
        assert strips.height > gallery.PROMPTS * 5 * 32
    (lora,) = (tmp_path / "runs" / "poster").glob("*.safetensors")
    made = lora.stat().st_mtime_ns
    gallery.main([*options, "--styles", "poster", "ink", "--lora", f"ink={lora}"])
    assert lora.stat().st_mtime_ns == made
    assert (tmp_path / "ink.webp").is_file() and not (tmp_path / "runs" / "ink").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(["--styles", "neon"], "there are ink, poster"), (["--lora", "poster"], "write NAME=FILE")],
)
def test_wrong_names_are_told_before_anything_is_made(folder, tmp_path, wrong, told):
    with pytest.raises(SystemExit, match=told):
        gallery.main(["--model", str(folder), "--out", str(tmp_path / "out"), *wrong])
    assert not (tmp_path / "out").exists()
