"""The node: finds motion modules in ComfyUI's folders and runs on them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def folders(comfy, monkeypatch, tmp_path):
    """ComfyUI's model folders, empty and of this test alone."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    diffusers = ([str(tmp_path / "diffusers")], {"folder"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"diffusers": diffusers})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for name in ("animatediff_models", "motion_modules", "diffusers"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_files_and_adapter_folders_are_listed(mcm, folders, tiny):
    save_file({"a": torch.zeros(1)}, folders / "animatediff_models" / "v2.safetensors")
    (folders / "animatediff_models" / "notes.txt").write_text("not weights")
    (folders / "motion_modules" / "alt ü").mkdir()
    torch.save({}, folders / "motion_modules" / "alt ü" / "v1.ckpt")
    tiny.adapter.save_pretrained(folders / "diffusers" / "pipe" / "motion_adapter")
    tiny.adapter.save_pretrained(folders / "motion_modules" / "adapter")
    names = mcm.motion_files.list_motion_modules()
    assert names == ["alt ü/v1.ckpt", "v2.safetensors", "adapter", "pipe/motion_adapter"]
    for name in names:
        assert mcm.motion_files.resolve_motion_module(name).exists()


def test_folders_of_other_packs_stay(mcm, folders, tmp_path):
    import folder_paths

    other = tmp_path / "elsewhere"
    other.mkdir()
    folder_paths.add_model_folder_path("animatediff_models", str(other))
    save_file({"a": torch.zeros(1)}, other / "v3.safetensors")
    assert mcm.motion_files.list_motion_modules() == ["v3.safetensors"]
    assert mcm.motion_files.resolve_motion_module("v3.safetensors") == other / "v3.safetensors"


@pytest.mark.parametrize("name", ["../secret.ckpt", "/etc/passwd", "..\\secret.ckpt", ""])
def test_names_outside_the_folders_are_refused(mcm, folders, name):
    (folders / "secret.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="not in the model folders"):
        mcm.motion_files.resolve_motion_module(name)


def test_a_missing_module_is_named(mcm, folders):
    with pytest.raises(ValueError, match="'gone.ckpt' was not found"):
        mcm.motion_files.resolve_motion_module("gone.ckpt")


def test_the_contract_of_saved_workflows(mcm, folders):
    schema = mcm.node.AnimateDiff.define_schema()
    assert schema.node_id == "MCM_AnimateDiff"
    assert [given.id for given in schema.inputs] == ["model", "motion_module"]
    assert all(given.tooltip for given in schema.inputs)
    assert schema.category == "MCM/loaders"


def test_the_node_makes_a_clip_model(mcm, folders, sd15, tiny, original_keys):
    save_file(original_keys(tiny.adapter), folders / "animatediff_models" / "mm.safetensors")
    with torch.inference_mode():  # as ComfyUI runs nodes
        (model,) = mcm.node.AnimateDiff.execute(sd15, "mm.safetensors").result
        rows = torch.zeros(2, 4, 8, 8)
        out = model.model.diffusion_model(
            rows, torch.ones(2), context=torch.zeros(2, 7, 768), transformer_options={}
        )
    assert out.shape == rows.shape
    assert mcm.info.video_info(model.clone()).name == "AnimateDiff mm"
