"""ComfyUI's own Wan with this pack: the trainer's predictions, its LoRA's clips, and refusals."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import wan_files
from tiny_text import wan_clip

SHAPE = (2, 16, 3, 4, 6)
SEED = 11
PROMPT = "a red star moving up"
INTERVALS = 48  # divided by 1, 2, 4 and 8, so that few steps are at ComfyUI's own levels


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return wan_files.save_for_core(tmp_path_factory.mktemp("ComfyUI") / "models")


@pytest.fixture(scope="module")
def trained(file):
    from trainer.families import load_model

    return load_model(str(file))


@pytest.fixture(scope="module")
def base(comfy, file):
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(file))


@pytest.fixture(scope="module")
def text(trained):
    return trained.encode_text([PROMPT])


@pytest.fixture(scope="module")
def pairs(trained):
    return wan_files.random_pairs(trained.network)


def card(**changes):
    from trainer.lora.metadata import LoraCard

    facts = {
        "title": "Ink", "family": "wan", "base_model": "tiny wan", "base_hash": "",
        "base_license": "Apache-2.0", "frames": 9, "width": 48, "height": 32, "fps": 16,
        "prediction_type": "velocity", "shift": 5.0, "original_steps": INTERVALS,
    }  # fmt: skip
    return LoraCard(**{**facts, **changes})


def export(pairs, path, **changes):
    from trainer.lora.export import export_file
    from trainer.lora.metadata import build_metadata

    export_file(pairs, path, build_metadata(card(**changes), pairs), dtype="fp32")


@pytest.fixture(scope="module")
def loras(pairs, tmp_path_factory):
    from trainer.lora.export import export_kohya, export_peft
    from trainer.lora.metadata import build_metadata
    from trainer.lora.pairs import LoraPair

    folder = tmp_path_factory.mktemp("loras")
    export(pairs, folder / "ink.safetensors")
    export(pairs, folder / "shift three.safetensors", shift=3.0)
    told = build_metadata(card(), pairs)
    export_kohya(pairs, folder / "kohya.safetensors", told, dtype="fp32")
    export_peft(pairs, folder / "peft", dtype="fp32")
    sizes = {"net.0.proj": (5120, 13824), "net.2": (13824, 5120)}
    wide = {}
    for path in pairs:
        inside, outside = sizes.get(path.partition("ffn.")[2], (5120, 5120))
        wide[path] = LoraPair(torch.ones(2, inside), torch.ones(outside, 2), 2.0)
    export(wide, folder / "large.safetensors", base_model="Wan 2.1 T2V 14B")
    spatial = {"down_blocks.0.motion_modules.0.proj_in": LoraPair(
        torch.ones(2, 320), torch.ones(320, 2), 2.0)}  # fmt: skip
    export(spatial, folder / "motion.safetensors", family="animatediff", base_model="SD",
           prediction_type="epsilon", shift=None)  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def lora_folder(comfy, loras, monkeypatch):
    import folder_paths

    entry = ([str(loras)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def noise(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def near(found, wanted, tolerance=1e-4):
    return float((found - wanted).norm() / wanted.norm()) <= tolerance


@torch.no_grad()
def predicted(model, x, level, text):
    """The velocity of a MODEL, through core's `apply_model`."""
    import comfy.model_management as management

    management.load_models_gpu([model])
    sigma = torch.full((len(x),), level)
    states = text.expand(len(x), -1, -1)
    x0 = model.model.apply_model(x, sigma, c_crossattn=states)
    return (x - x0) / level


def core_shift(model, shift):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def core_lora(model, path, strength=1.0):
    import comfy.sd
    import comfy.utils

    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]


@torch.no_grad()
def sampled(model, sampler, start, steps, text):
    """A clip by KSampler's own machinery at CFG 1, in the model's latents."""
    import comfy.samplers

    levels = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", steps
    )
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, {}]], [[text, {}]])
    guider.set_cfg(1.0)
    found = guider.sample(start, torch.zeros_like(start), sampler, levels, seed=SEED)
    return model.model.latent_format.process_in(found)


@pytest.mark.parametrize("level", [1.0, 0.9375, 0.625, 0.1])
def test_the_trainers_prediction_is_that_of_comfyuis_model(trained, base, text, level):
    with torch.no_grad():
        wanted = trained.predict(
            noise(), torch.full((len(noise()),), level), text.expand(len(noise()), -1, -1)
        )
    assert near(predicted(base, noise(), level, text), wanted)


def test_the_text_encoder_of_comfyui_gives_the_trainers_states(comfy, file, text):
    (place,) = (file.parents[1] / "text_encoders").iterdir()
    clip = wan_clip(place)
    with torch.inference_mode():
        found = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
    assert found.shape == text.shape == (1, 512, 4096)
    assert near(found, text)


def test_every_key_of_the_file_is_in_comfyuis_own_table(base, pairs, loras):
    import comfy.lora
    import comfy.utils

    state = comfy.utils.load_torch_file(str(loras / "ink.safetensors"), safe_load=True)
    table = comfy.lora.model_lora_keys_unet(base.model, {})
    patches = comfy.lora.load_lora(state, table)
    assert len(patches) == len(pairs) == 20 and 2 * len(patches) == len(state)
    assert set(base.clone().add_patches(patches)) == set(patches)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_lora_gives_the_trainers_clip_through_comfyuis_own_loader(
    native, trained, base, pairs, loras, text, steps
):
    from trainer.diffusion.sampling import sample_lcm
    from trainer.lora.adapter import apply_lora

    states = text.expand(len(noise()), -1, -1)
    undo = apply_lora(trained.network, pairs)
    wanted = sample_lcm(trained.predict, trained.noise, states, SHAPE, steps,
                        original_steps=INTERVALS, seed=SEED)  # fmt: skip
    undo()
    plain = sample_lcm(trained.predict, trained.noise, states, SHAPE, steps,
                       original_steps=INTERVALS, seed=SEED)  # fmt: skip
    sampling = native("sampling")
    start = sampling.StartNoise(SEED, "video").generate_noise({"samples": torch.zeros(SHAPE)})
    sampler = sampling.few_step_sampler("video")
    core = core_shift(core_lora(base, loras / "ink.safetensors"), 5.0)
    found = sampled(core, sampler, start, steps, text)
    assert near(found, wanted, 1e-3) and not near(found, plain, 1e-2)
    ours = native("lora").load_lora(base, "ink.safetensors", 1.0)
    assert near(sampled(ours, sampler, start, steps, text), found, 1e-5)


def test_two_nodes_of_core_and_ours_are_one_with_core_noise(native, base, loras, text):
    """KSampler's own sampler: what people run."""
    import comfy.samplers

    core = core_shift(core_lora(base, loras / "ink.safetensors"), 5.0)
    found = [
        sampled(model, comfy.samplers.sampler_object("lcm"), noise(), 4, text)
        for model in (core, native("lora").load_lora(base, "ink.safetensors", 1.0))
    ]
    # Before 0.7 core's own noise of a step was the start noise again, which ours avoids.
    assert near(found[1], found[0], 1e-5) == native("core").core_moves_step_seed()


def test_kohyas_names_are_the_same_lora(native, base, text):
    load = native("lora").load_lora
    wanted, found = load(base, "ink.safetensors", 0.7), load(base, "kohya.safetensors", 0.7)
    assert near(predicted(found, noise(), 0.9, text), predicted(wanted, noise(), 0.9, text), 1e-6)


def test_a_lora_that_says_nothing_of_few_steps_is_left_to_comfyui(native, base):
    with pytest.raises(ValueError, match="not a few-step LoRA: nothing in its .*ModelOnly"):
        native("lora").load_lora(base, "peft", 0.7)


@pytest.mark.parametrize("form", ["scale_weight", "weight_scale", "plain"])
def test_a_lora_goes_onto_fp8_weights(native, base, file, loras, text, tmp_path, form):
    import comfy.sd
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    made = wan_files.plain_fp8(state) if form == "plain" else wan_files.scaled_fp8(state, form)
    save_file(made, tmp_path / "fp8.safetensors")
    fp8 = comfy.sd.load_diffusion_model(str(tmp_path / "fp8.safetensors"))
    before = predicted(fp8, noise(), 0.9, text)
    assert len(native("core_models").layer_shapes(fp8)) >= 20
    styled = native("lora").load_lora(fp8, "ink.safetensors", 1.0)
    change = predicted(styled, noise(), 0.9, text) - before
    wanted = native("lora").load_lora(base, "ink.safetensors", 1.0)
    full = predicted(wanted, noise(), 0.9, text) - predicted(base, noise(), 0.9, text)
    assert near(change, full, 0.5), "the LoRA's change, but for rounding to eight bits"
    assert near(predicted(fp8, noise(), 0.9, text), before, 1e-6), "and it can be undone"


@pytest.mark.parametrize("name, shift", [("ink.safetensors", 5), ("shift three.safetensors", 3)])
def test_load_mcm_lora_sets_the_shift_as_core_does(native, base, name, shift):
    styled = native("lora").load_lora(base, name, 1.0).get_model_object("model_sampling")
    wanted = core_shift(base, shift).get_model_object("model_sampling")
    assert styled.shift == shift and torch.equal(styled.sigmas, wanted.sigmas)
    assert float(styled.timestep(torch.tensor(0.5))) == 500
    plain = native("lora").load_lora(base, name, 0.0).get_model_object("model_sampling")
    assert plain.shift == 8.0, "strength 0 leaves the model as it is"


def test_misfits_are_refused_by_name(native, base):
    load = native("lora").load_lora
    with pytest.raises(ValueError, match="made for Wan 2.1 T2V 14B.*Load the base model"):
        load(base, "large.safetensors", 1.0)
    with pytest.raises(ValueError, match="LoRA for 'animatediff' .*of family 'wan'"):
        load(base, "motion.safetensors", 1.0)


def test_a_wan_lora_is_refused_by_another_model(native, tiny_model):
    model = native("model").load_native_model(tiny_model, "fp32")
    with pytest.raises(ValueError, match="LoRA for 'wan' .*of family 'modelscope'"):
        native("lora").load_lora(model, "ink.safetensors", 1.0)


def test_its_info_says_shift_size_and_speed(native):
    settings, summary = native("lora_info").lora_info("shift three.safetensors")
    assert settings.sampling["shift"] == 3.0 and settings.fps == 16
    assert "sampler lcm, scheduler simple, strength 1, shift 3" in summary
    assert "9 frames of 48 x 32 pixels, 16 a second" in summary


def test_mcm_lora_info_gives_shift_and_speed(comfy):
    nodes = import_module(f"{comfy.__name__}.nodes.lora")
    *told, fps, shift = nodes.LoraInfo.execute("shift three.safetensors").result
    assert (told[0], fps, shift) == (4, 16, 3.0)


@pytest.mark.parametrize("shift", [3.0, 12.0])
def test_mcm_model_sampling_sets_the_shift(comfy, base, shift):
    nodes = import_module(f"{comfy.__name__}.nodes.sampling")
    (model,) = nodes.ModelSampling.execute(base, 4.0, 50, shift).result
    wanted = core_shift(base, shift).get_model_object("model_sampling")
    assert torch.equal(model.get_model_object("model_sampling").sigmas, wanted.sigmas)


def test_the_scheduler_gives_a_students_levels(native, base):
    model = native("sampling").apply_model_sampling(base)
    for steps, wanted in {
        1: [1.0, 0], 2: [1, 0.8333, 0], 4: [1, 0.9375, 0.8333, 0.625, 0],
    }.items():  # fmt: skip
        found = native("sampling").few_step_sigmas(model, steps)
        assert torch.allclose(found, torch.tensor(wanted), atol=1e-4)
    with pytest.raises(ValueError, match="still has the base model's noise levels"):
        native("sampling").few_step_sigmas(base, 4)


def test_the_order_of_modelscopes_pipeline_is_refused(native):
    latents = {"samples": torch.zeros(SHAPE)}
    with pytest.raises(ValueError, match="For Wan choose 'video' or 'core'"):
        native("sampling").StartNoise(0, "frames").generate_noise(latents)


def test_empty_latents_have_five_axes(native, base):
    latents = native("latents")
    samples = latents.empty_latents(48, 32, 9, 2, base)["samples"]
    assert samples.shape == (2, 16, 3, 4, 6)
    assert native("latents").model_for_frames(base, 9).model is base.model
    for frames in (8, 12, 125):
        with pytest.raises(ValueError, match=r"use 5, 9, 13, \.\.\. or 121.*'WAN Context Windows'"):
            latents.empty_latents(48, 32, frames, 1, base)
    for width, height in ((40, 32), (48, 24)):
        with pytest.raises(ValueError, match="must be a multiple of 16 pixels"):
            latents.empty_latents(width, height, 9, 1, base)


def test_with_core_windows_a_clip_may_be_long_but_not_of_any_length(native, base):
    model = base.clone()
    model.model_options["context_handler"] = object()
    assert native("latents").empty_latents(48, 32, 161, 1, model)["samples"].shape[2] == 41
    with pytest.raises(ValueError, match="`frames`=160 .*use 157 or 161"):
        native("latents").empty_latents(48, 32, 160, 1, model)


def test_windows_over_batches_of_frames_are_refused(native, base):
    with pytest.raises(ValueError, match="Use ComfyUI's 'WAN Context Windows"):
        native("context").add_context_windows(base, 33, 8)


def test_a_wan_that_is_given_pictures_is_refused(native, base, file, tmp_path):
    import comfy.sd
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    state["patch_embedding.weight"] = torch.zeros(128, 36, 1, 2, 2)
    state["img_emb.proj.0.bias"] = torch.zeros(1280)
    save_file(state, tmp_path / "i2v.safetensors")
    model = comfy.sd.load_diffusion_model(str(tmp_path / "i2v.safetensors"))
    with pytest.raises(ValueError, match=r"another kind \(WAN21, 36 input channels\)"):
        native("lora").load_lora(model, "ink.safetensors", 1.0)


def test_previews_show_every_latent_frame(native, base):
    import latent_preview

    form = base.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(
        form.latent_rgb_factors, form.latent_rgb_factors_bias
    )
    images = native("previews").preview_frames(previewer, noise(), None)
    assert len(images) == 3 and images[0].size == (2 * 6, 4)
    assert len({image.tobytes() for image in images}) == 3
