"""A MODEL whose weights another pack keeps packed, as GGUF loaders do: Load MCM LoRA patches it by
ComfyUI's patches alone, so that its own patcher unpacks the weights and adds them.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import wan_files
from stock import card, export
from torch import nn

from trainer.families import load_model
from trainer.lora.adapter import add_lora, lora_state


class Packed(torch.Tensor):
    """Bytes that say the shape of the weight they stand for, as ComfyUI-GGUF's tensors do."""

    @staticmethod
    def of(weight):
        made = torch.zeros(weight.numel() // 2, dtype=torch.uint8).as_subclass(Packed)
        made.stands_for = weight.shape
        return made

    @property
    def shape(self):
        return self.stands_for

    def detach(self):
        return self


@pytest.fixture
def file(tmp_path):
    return wan_files.save_for_core(tmp_path / "models")


@pytest.fixture
def model(comfy, file):
    """Core's Wan, the layers of its blocks packed, with the patcher of another pack."""
    import comfy.model_patcher
    import comfy.sd

    class OfAnotherPack(comfy.model_patcher.ModelPatcher):
        def clone(self, *args, **kwargs):
            made = super().clone(*args, **kwargs)
            made.__class__ = OfAnotherPack
            return made

    loaded = comfy.sd.load_diffusion_model(str(file))
    for layer in loaded.model.diffusion_model.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(Packed.of(layer.weight), requires_grad=False)
    loaded.__class__ = OfAnotherPack
    return loaded


@pytest.fixture
def lora(comfy, file, tmp_path, monkeypatch):
    """The pairs of a LoRA that is in ComfyUI's folder as ``ink.safetensors``."""
    import folder_paths

    network = load_model(str(file)).network
    add_lora(network, 2, 2.0)
    pairs = lora_state(network)
    told = card(family="wan", prediction_type="velocity", shift=5.0, frames=9)
    export(pairs, tmp_path / "ink.safetensors", told)
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return pairs


def packed(model):
    named = model.model.diffusion_model.named_parameters()
    return {name: value for name, value in named if isinstance(value, Packed)}


def test_packed_weights_are_left_to_the_patcher_that_knows_them(comfy, model, lora):
    before = packed(model)
    native = import_module(f"{comfy.__name__}.nodes.native.lora")
    styled = native.load_lora(model, "ink.safetensors", 0.5)
    assert type(styled) is type(model)
    assert set(styled.patches) == {f"diffusion_model.{name}" for name in before}
    assert len(before) == len(lora) == 20
    assert all(strength == 0.5 for ((strength, *_),) in styled.patches.values())
    after = packed(styled)
    assert all(after[name] is value and not value.any() for name, value in before.items())
    assert not model.patches
