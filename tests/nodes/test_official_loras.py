"""Official LoRAs at full size on full-size native models, whose weights stay on torch's meta
device: every key finds its layer, or all are refused.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from official import FULL, MODULES, OPTIONS, official, official_tensors, write_official

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FRAMES = {"modelscope": (16,), "animatediff": (16, 32)}
OTHER = {"modelscope": "animatediff", "animatediff": "modelscope"}


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def models(native):
    classes = {
        "modelscope": native("unet").NativeUNet3D,
        "animatediff": native("unet").NativeMotionUNet,
    }
    found = {}
    for name, unet in classes.items():
        options = {**OPTIONS[name], **FULL}
        model = native("model").build_native_model(
            unet, options, dtype=torch.float16, scheduler_config=SCHEDULER
        )
        info = native("info").VideoInfo(
            family=name, name=f"full {name}", frames=FRAMES[name], default_frames=16, width=256,
            height=256, fps=8, licence="", scheduler_config=SCHEDULER,
        )  # fmt: skip
        found[name] = native("model").wrap_model(model, info)
    return found


@pytest.fixture
def loras(comfy, tmp_path, monkeypatch):
    import folder_paths

    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", MODULES)
def test_every_key_of_an_official_lora_finds_its_layer(native, models, loras, name, dtype):
    folder = write_official(loras / f"{name}-laion", official_tensors(name, dtype))
    patched = native("lora").load_lora(models[name], folder.name, 1.0)
    wanted = {f"diffusion_model.{path}.weight" for path in official(name)}
    assert set(patched.patches) == wanted and len(wanted) == MODULES[name]
    assert not models[name].patches
    assert "made for" in native("lora_info").lora_info(folder.name)[1]
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("name", MODULES)
def test_the_other_familys_lora_is_refused_whole(native, models, loras, name):
    folder = write_official(loras / name, official_tensors(name, torch.float16))
    with pytest.raises(ValueError, match="does not fit.*made for.*Load the base model"):
        native("lora").load_lora(models[OTHER[name]], name, 1.0)
    (folder / "adapter_model.safetensors").unlink()
