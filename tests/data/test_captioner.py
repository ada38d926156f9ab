"""Captions by a model on this machine: a tiny BLIP with random weights stands in for a real one."""

from __future__ import annotations

import json
import shutil

import pytest
from network_files import write_blip

from trainer.cli.main import main
from trainer.data.captioner import find_captioners, load_captioner
from trainer.data.records import DataError


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioners") / "tiny blip"
    write_blip(folder)
    return folder


def test_images_without_a_caption_get_one_and_the_others_keep_theirs(blip, style_images, tmp_path):
    folder = tmp_path / "bilder"
    shutil.copytree(style_images, folder)
    images = sorted(folder.glob("*.png"))
    kept = images[0].with_suffix(".txt").read_bytes()
    for image in images[1:4]:
        image.with_suffix(".txt").unlink()
    arguments = ["caption", str(folder), "--captioner", str(blip), "--suffix", "[trigger]"]
    assert main(arguments) == 0
    assert images[0].with_suffix(".txt").read_bytes() == kept
    for image in images[1:4]:
        assert "[trigger]" in image.with_suffix(".txt").read_text(encoding="utf-8")
    assert main(arguments) == 0  # nothing is left to do


def test_captioners_are_found_and_other_models_are_not(blip, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    other = blip.parent / "other"
    other.mkdir(exist_ok=True)
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    assert find_captioners([blip.parent]) == [blip]


@pytest.mark.parametrize("content, said", [("", "no model"), ('{"model_type": "bert"}', "'bert'")])
def test_a_folder_without_a_captioner_is_refused(tmp_path, content, said):
    if content:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        load_captioner(tmp_path)
