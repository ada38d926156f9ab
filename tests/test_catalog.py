"""Base models on a machine: found, described with their licence, and what they lack."""

from __future__ import annotations

import shutil

import pytest

from trainer.catalog import comfyui_folder, family_of_file, find_models, find_motion_modules


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    folder = tmp_path / "ComfyUI"
    for name in ("diffusers", "checkpoints", "animatediff_models"):
        (folder / "models" / name).mkdir(parents=True)
    return folder


def test_mini_is_always_there_and_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (mini,) = find_models()
    assert (mini.model, mini.licence, mini.ready, mini.commercial) == (
        "mini", "Apache-2.0", True, True,
    )  # fmt: skip
    assert mini.for_trying_out == "one shape"


def test_a_diffusers_folder_is_found_with_what_it_lacks(comfyui, tiny_model):
    whole = comfyui / "models" / "diffusers" / "author" / "whole"
    shutil.copytree(tiny_model, whole)
    (whole / "mcm.json").unlink()
    torn = comfyui / "models" / "diffusers" / "torn"
    shutil.copytree(whole, torn)
    shutil.rmtree(torn / "vae")
    for file in (torn / "unet").glob("*.safetensors"):
        file.unlink()
    found = {model.name: model for model in find_models(comfyui)}
    assert found["author/whole"].ready and not found["author/whole"].commercial
    assert set(found["torn"].missing) == {"vae", "the weights in unet"}


def test_a_checkpoint_needs_a_motion_module(comfyui, sd15_checkpoint, motion_module_file, tmp_path):
    checkpoint = comfyui / "models" / "checkpoints" / "paint.safetensors"
    shutil.copyfile(sd15_checkpoint, checkpoint)
    (notes := checkpoint.parent / "notes.safetensors").write_bytes(b"no weights")
    assert family_of_file(checkpoint) and family_of_file(notes) is None
    _, found = find_models(comfyui)
    assert found.needs_motion and "motion module" in found.missing[0]
    module = comfyui / "models" / "animatediff_models" / motion_module_file.name
    shutil.copyfile(motion_module_file, module)
    assert find_motion_modules(comfyui) == [(module.name, module)]
    assert find_models(comfyui)[1].ready


def test_comfyui_is_found_from_the_packs_place_or_a_setting(comfyui, tmp_path):
    pack = comfyui / "custom_nodes" / "mcm"
    pack.mkdir(parents=True)
    assert comfyui_folder(pack) == comfyui
    assert comfyui_folder(tmp_path / "alone") is None
    assert comfyui_folder(tmp_path / "alone", comfyui) == comfyui
    assert comfyui_folder(tmp_path / "alone", comfyui / "models") == comfyui
    with pytest.raises(ValueError, match="no folder `models`"):
        comfyui_folder(pack, tmp_path)
