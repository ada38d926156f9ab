"""Models under core's dynamic VRAM are those of its plain loading, in every weight type."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from dynamic_vram import dynamic_vram, has_dynamic_vram

from trainer.paths import MINI

LORA = "mini-poster.safetensors"
DTYPES = ("fp32", "fp16", "bf16", "fp8_e4m3fn")


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


def load(native, dtype):
    return native("bundle").load_video_model(MINI, dtype)


@torch.inference_mode()
def clip_of(native, loaded, lora=True, steps=2):
    """Images (8, 64, 64, 3) of the bundled LoRA's few-step way through KSampler and VAE Decode."""
    import comfy.sample

    model, clip, vae = loaded
    if lora:
        model = native("lora").load_lora(model, LORA, 1.0)
    prompts = ("a red star growing", "")
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]
    latent = native("latents").empty_latents(64, 64, 8, 1, model)["samples"]
    noise = comfy.sample.prepare_noise(latent, 3)
    out = comfy.sample.sample(
        model, noise, steps, 1.0, "lcm", "simple", *texts, latent, seed=3, disable_pbar=True
    )
    return vae.decode(out).clone()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_is_that_of_plain_loading(native, dtype):
    with dynamic_vram() as on:
        loaded = load(native, dtype)
        assert loaded[0].is_dynamic() if on else not hasattr(loaded[0], "is_dynamic")
        found = clip_of(native, loaded)
    wanted = clip_of(native, load(native, dtype))
    assert float((found - wanted).abs().max()) <= 2e-3  # a LoRA is added in another order
    assert float((found - clip_of(native, loaded, lora=False)).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_network_says_which_types_its_weights_are_loaded_into(native, dtype):
    """Core notes them while the network is still on meta (`archive_model_dtypes`)."""
    model = load(native, dtype)[0].model
    noted = 0
    for module in model.diffusion_model.modules():
        for name, value in module.named_parameters(recurse=False):
            wanted = getattr(module, f"{name}_comfy_model_dtype", value.dtype)
            assert value.dtype == wanted, name
            noted += hasattr(module, f"{name}_comfy_model_dtype")
    assert bool(noted) == has_dynamic_vram()


def test_core_can_load_the_model_once_more(native):
    """For hooks, which dynamic patchers do not take, and for a second GPU."""
    with dynamic_vram() as on:
        loaded = load(native, "fp32")
        wanted = clip_of(native, loaded)
        model, clip, vae = loaded
        for part in (model, clip.patcher, vae.patcher):
            make, arguments = part.cached_patcher_init
            again = make(*arguments, disable_dynamic=True)
            assert not on or not again.is_dynamic()
            assert again.model is not part.model
        make, arguments = model.cached_patcher_init
        assert torch.equal(clip_of(native, (make(*arguments), clip, vae)), wanted)
        if on:
            plain = model.get_non_dynamic_delegate()
            assert not plain.is_dynamic()
            found = clip_of(native, (plain, clip, vae))
            assert float((found - wanted).abs().max()) <= 2e-3


def test_adapters_of_a_lora_can_be_built_again(native):
    """Core's prefetch copies a LoRA's weights to the card: ``type(v)(loaded_keys, weights)``."""
    model = native("lora").load_lora(load(native, "fp16")[0], LORA, 1.0)
    assert model.patches
    for key, patches in model.patches.items():
        for _, adapter, *_ in patches:
            again = type(adapter)(adapter.loaded_keys, adapter.weights)
            assert again.weights is adapter.weights
            tensors = [each for each in adapter.weights if isinstance(each, torch.Tensor)]
            assert len(tensors) >= 2, key
            assert all(each.device.type == "cpu" for each in tensors)
