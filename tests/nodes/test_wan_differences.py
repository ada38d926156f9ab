"""A LoRA with whole differences of norms and biases, as runs from a step LoRA export:
the same student in the trainer, through ComfyUI's own loader and through Load MCM LoRA.
"""

from __future__ import annotations

import logging
from importlib import import_module

import pytest
import torch
import wan_files


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return wan_files.save_for_core(tmp_path_factory.mktemp("ComfyUI") / "models")


@pytest.fixture(scope="module")
def pack(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(params=["pairs and whole differences", "whole differences alone"])
def lora(request, comfy, file, tmp_path, monkeypatch):
    """(trained model, the exported file), in ComfyUI's folder of LoRAs."""
    import folder_paths

    from trainer.families import load_model
    from trainer.lora.adapter import add_lora, lora_parameters, lora_state
    from trainer.lora.export import export_file
    from trainer.lora.whole import add_whole, merged

    student = load_model(str(file))
    add_lora(student.network, 2, 2.0, ranks={"condition_embedder.time_proj": 3, "proj_out": 1})
    generator = torch.Generator().manual_seed(0)
    scale = 0.1 if request.param.startswith("pairs") else 0
    with torch.no_grad():
        for parameter in lora_parameters(student.network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    plain = load_model(str(file)).network
    wanted = ("norm_q.weight", "norm2", "net.2.bias", "patch_embedding",
              "blocks.1.ffn.net.0.proj.weight")  # fmt: skip
    whole = {
        name: torch.randn(value.shape, generator=generator) * 0.1
        for name, value in plain.named_parameters() if any(piece in name for piece in wanted)
    }  # fmt: skip
    add_whole(student.network, whole)
    pairs, differences = merged(lora_state(student.network), whole) if scale else ({}, whole)
    told = {"mcm.family": "wan", "mcm.version": "1", "mcm.prediction_type": "velocity"}
    export_file(pairs, tmp_path / "s.safetensors", told, dtype="fp32", differences=differences)
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return student, tmp_path / "s.safetensors"


@torch.no_grad()
def predicted(model, x, text):
    import comfy.model_management as management

    management.load_models_gpu([model])
    x0 = model.model.apply_model(x, torch.full((1,), 0.9), c_crossattn=text)
    return (x - x0) / 0.9


def near(found, wanted):
    return float((found - wanted).norm() / wanted.norm()) <= 1e-4


def test_both_loaders_give_the_trainers_student(pack, file, lora, caplog):
    import comfy.sd
    import comfy.utils

    student, path = lora
    base = comfy.sd.load_diffusion_model(str(file))
    text = student.encode_text(["a red star"])
    x = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = student.predict(x, torch.full((1,), 0.9), text)
    plain = predicted(base, x, text)
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    with caplog.at_level(logging.WARNING):
        core = comfy.sd.load_lora_for_models(base, None, state, 1.0, 0)[0]
        assert near(predicted(core, x, text), wanted)
    assert "not loaded" not in caplog.text and "MISMATCH" not in caplog.text
    native = pack("lora")
    ours = native.load_lora(base, path.name, 1.0)
    assert near(predicted(ours, x, text), wanted) and not near(plain, wanted)
    assert near(predicted(base, x, text), plain), "and it is undone"


def test_a_difference_of_another_shape_is_refused(pack, file, lora):
    import comfy.sd

    native, base = pack("lora"), comfy.sd.load_diffusion_model(str(file))
    wrong = {"blocks.0.attn1.norm_q.weight": torch.ones(64)}
    with pytest.raises(ValueError, match=r"norm_q.weight. is .64,. in the LoRA, .128,. in the"):
        native.add_differences(base, wrong, 1.0, lambda path: path.replace("attn1", "self_attn"))
    with pytest.raises(ValueError, match="has no .diffusion_model.nowhere.bias"):
        native.add_differences(base, {"nowhere.bias": torch.ones(1)}, 1.0, str)
    with pytest.raises(ValueError, match="never applies a difference of"):
        native.add_differences(base, {"blocks.0.modulation": torch.ones(1)}, 1.0, str)


def test_core_still_leaves_modulations_alone(pack, file, tmp_path):
    """Why they are left out; if this fails, ComfyUI has learned it and they can be carried."""
    import comfy.sd

    base = comfy.sd.load_diffusion_model(str(file))
    key = "diffusion_model.blocks.0.modulation"
    x, text = torch.randn(1, 16, 2, 4, 4), torch.zeros(1, 8, 4096)
    before, patched = predicted(base, x, text), base.clone()
    assert patched.add_patches({key: ("diff", (torch.ones(1, 6, 128),))}) == [key]
    assert torch.equal(predicted(patched, x, text), before)
