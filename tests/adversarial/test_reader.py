"""The caption loss of real models: CLIP in the files that people have, and its score."""

from __future__ import annotations

import pytest
import torch
from network_files import tiny_clip
from safetensors.torch import save_file

from trainer.adversarial.mini import MiniFeatures
from trainer.adversarial.reader import SCALE, ClipReader, build_reader
from trainer.mini.networks import build_framenet
from trainer.models.clip_pair import find_clip, read_clip
from trainer.models.weights import ModelError

CAPTIONS = ["a red boat", "two blue houses at night"]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip ä"
    clip.save_pretrained(path)
    return path


def tensors(clip, *starts: str) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in clip.state_dict().items() if k.startswith(starts)}


def score(reader: ClipReader, pixels: torch.Tensor) -> torch.Tensor:
    return reader(pixels, reader.targets(CAPTIONS))


def test_the_score_is_that_of_transformers(clip, folder):
    reader = ClipReader(*read_clip(folder))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    _, tokenizer = read_clip(folder)
    words = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    prepared = (pixels * 0.5 + 0.5 - reader.mean) / reader.std
    with torch.no_grad():
        out = clip(pixel_values=prepared, **words)
    cosines = (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(score(reader, pixels), 1 - SCALE * cosines, atol=1e-4, rtol=1e-4)


def test_the_gradient_reaches_the_pixels_and_no_weight(folder):
    reader = ClipReader(*read_clip(folder))
    pixels = torch.zeros(2, 3, 40, 64, requires_grad=True)
    score(reader, pixels).sum().backward()
    assert pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert not any(p.requires_grad for p in reader.parameters())
    moved = (pixels - 0.5 * pixels.grad / pixels.grad.abs().max()).detach()
    assert score(reader, moved).sum() < score(reader, pixels).sum(), "down the gradient it is less"


def test_one_file_and_comfyuis_two_files_are_read(clip, folder, tmp_path):
    models = tmp_path / "models"
    for name in ("clip_vision", "text_encoders"):
        (models / name).mkdir(parents=True)
    whole, image = models / "whole.safetensors", models / "clip_vision" / "vision.safetensors"
    save_file(tensors(clip, "text_", "vision_", "visual_", "logit"), whole)
    save_file(tensors(clip, "vision_", "visual_"), image)
    save_file(tensors(clip, "text_"), models / "text_encoders" / "clip_l.safetensors")
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = score(ClipReader(*read_clip(folder)), pixels)
    for path in (whole, image):
        torch.testing.assert_close(score(ClipReader(*read_clip(path)), pixels), wanted)


def test_half_a_clip_is_refused_with_what_is_missing(clip, tmp_path):
    save_file(tensors(clip, "vision_", "visual_"), tmp_path / "vision.safetensors")
    with pytest.raises(ModelError, match="no CLIP text encoder"):
        read_clip(tmp_path / "vision.safetensors")
    save_file(tensors(clip, "text_"), tmp_path / "text.safetensors")
    with pytest.raises(ModelError, match="no CLIP image encoder"):
        read_clip(tmp_path / "text.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}', encoding="utf-8")
    with pytest.raises(ModelError, match="'dinov2', not a complete CLIP"):
        read_clip(tmp_path)


def test_it_is_found_by_path_or_said_to_be_missing(folder, tmp_path):
    assert find_clip(str(folder)) == folder and find_clip("none") is None
    with pytest.raises(ModelError, match="does not exist"):
        find_clip(str(tmp_path / "nothing"))


def test_a_network_that_reads_needs_no_clip(folder):
    assert build_reader(str(folder), MiniFeatures(build_framenet())) is None
