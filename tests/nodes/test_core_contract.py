"""What `nodes/native/core.py` relies on, asked of the ComfyUI that the tests run with."""

from __future__ import annotations

import inspect
import logging
from importlib import import_module

import pytest
import torch

FRAMES, SIDE = 8, 4
PLACES = ("OUTER_SAMPLE", "PREPARE_SAMPLING", "SAMPLER_SAMPLE", "CALC_COND_BATCH")


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture
def model(native, tiny_model):
    return native("model").load_native_model(tiny_model, "fp32")


def sample(model, frames=FRAMES):
    import comfy.sample

    text = [[torch.zeros(1, 77, 64), {}]]
    latent = torch.zeros(frames, 4, SIDE, SIDE)
    noise = comfy.sample.prepare_noise(latent, 1)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 1, 2.0, "euler", "normal", text, text, latent, seed=1, disable_pbar=True
        )


def test_the_model_is_of_cores_class_and_so_are_its_clones(native, model):
    import comfy.model_patcher as core

    wanted = core.ModelPatcher  # what CoreModelPatcher makes for the CPU
    assert isinstance(model, wanted)
    assert type(model) is type(model.clone()) is native("core").video_patcher_class(wanted)
    assert hasattr(core, "CoreModelPatcher") == hasattr(core, "ModelPatcherDynamic")


def test_wrappers_are_called_from_the_outside_in(native, model):
    """With what the wrappers of this pack take: each place is asked at least once in a step."""
    asked = []

    def around(place):
        def wrapper(executor, *args, **named):
            asked.append((place, len(args)))
            return executor(*args, **named)

        return wrapper

    clone = model.clone()
    for place in PLACES:
        for name in ("first", "second"):
            native("core").wrap(clone, place, name, around(f"{place} {name}"))
            native("core").wrap(clone, place, name, around(f"{place} {name}"))  # replaces
    sample(clone)
    order = [place for place, _ in asked]
    for place in PLACES:
        first, second = (order.index(f"{place} {name}") for name in ("first", "second"))
        assert first < second
        assert order.count(f"{place} first") == order.count(f"{place} second")
    counts = dict(asked)
    assert counts["OUTER_SAMPLE first"] >= 4  # noise, latent_image, sampler, sigmas
    assert counts["PREPARE_SAMPLING first"] >= 3  # model, noise_shape, conds
    assert counts["CALC_COND_BATCH first"] == 5  # model, conds, x_in, timestep, model_options


def test_a_runs_options_are_its_own(native, model):
    """`sample_videos` writes the frames into them; the MODEL must not keep them."""
    seen = []

    def look(executor, *args, **named):
        seen.append(executor.class_obj.model_options["transformer_options"]["mcm_frames"])
        return executor(*args, **named)

    clone = model.clone()
    native("core").wrap(clone, "OUTER_SAMPLE", "look", look)
    for frames in (8, 16):
        sample(clone, frames)
    assert seen == [8, 16]
    assert "mcm_frames" not in clone.model_options["transformer_options"]


def test_the_seed_of_the_steps_is_found_out_by_drawing(native):
    from comfy.k_diffusion.sampling import default_noise_sampler

    x = torch.zeros(3, 2)
    shift = 1 if native("core").core_moves_step_seed() else 0
    wanted = torch.randn(x.shape, generator=torch.Generator().manual_seed(7 + shift))
    assert torch.equal(default_noise_sampler(x, seed=7)(None, None), wanted)


def test_quantised_checkpoints_are_known_without_cores_warning(native, caplog):
    """Reading a name that the model config lacks logs "Please fix your code"."""
    import comfy.supported_models

    with caplog.at_level(logging.WARNING):
        config = comfy.supported_models.SD15({"model_channels": 320})
        assert native("core").quantised_as(config) == ""
        for name in native("core").QUANTISED:
            marked = comfy.supported_models.SD15({"model_channels": 320})
            setattr(marked, name, {"mixed_ops": True})
            assert native("core").quantised_as(marked) == name
    assert not caplog.records


def test_adapters_and_attention_take_what_the_pack_gives(comfy):
    from comfy.ldm.modules.attention import optimized_attention
    from comfy.weight_adapter.lora import LoRAAdapter

    assert list(inspect.signature(LoRAAdapter).parameters)[:2] == ["loaded_keys", "weights"]
    q = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, q, q)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    assert torch.allclose(optimized_attention(q, q, q, heads=2, mask=None), wanted, atol=1e-5)


def test_previews_are_sent_by_progress(comfy):
    from comfy_api.latest import ComfyAPISync

    parameters = inspect.signature(ComfyAPISync().execution.set_progress).parameters
    assert {"value", "max_value", "preview_image"} <= set(parameters)
