"""A LoRA trained on AnimateDiff gives in ComfyUI what it gives in the trainer."""

from __future__ import annotations

from importlib import import_module

import torch

from trainer.families import load_model
from trainer.lora.adapter import add_lora, lora_parameters, lora_state
from trainer.lora.export import export_kohya

TOLERANCE = 2e-5


def test_node_and_trainer_agree(
    comfy, mcm, load, sd15_parts, sd15_checkpoint, motion_module_file, tmp_path, monkeypatch
):
    import folder_paths

    trained = load_model(str(sd15_checkpoint), motion_module=motion_module_file)
    add_lora(trained.network, 4, 4.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(trained.network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    told = {"mcm.family": trained.family.name, "mcm.base_model": trained.name}
    export_kohya(lora_state(trained.network), tmp_path / "a.safetensors", told, dtype="fp32")
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})

    halved = {key: value.half().float() for key, value in sd15_parts.unet.state_dict().items()}
    module = mcm.motion_module.read_motion_module(motion_module_file)
    model = mcm.animatediff.apply_motion_module(load(halved), module)
    lora = import_module(f"{comfy.__name__}.nodes.native.lora")
    patched = lora.load_lora(model, "a.safetensors", 1.0)
    patched.patch_model()

    latents = torch.randn(1, 4, 4, 8, 8, generator=generator)
    text = trained.encode_text(["a cat walking"])
    t = torch.tensor([500])
    with torch.inference_mode():
        ours = patched.model.diffusion_model(
            latents[0].transpose(0, 1), t.float().expand(4), context=text, transformer_options={}
        )
        theirs = trained.predict(latents, t, text)[0].transpose(0, 1)
    patched.unpatch_model()
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
