"""A base model that predicts v is sampled as one, as in the trainer; NaN is told, not shown."""

from __future__ import annotations

import json
import shutil
from importlib import import_module

import pytest
import torch

FRAMES, SIDE, SEED, STEPS = 8, 4, 11, 2


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture
def velocity_folder(tiny_model, tmp_path):
    """The tiny model, declared as one that predicts v."""
    folder = tmp_path / "v ü"
    shutil.copytree(tiny_model, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    told = {**json.loads(config.read_text(encoding="utf-8")), "prediction_type": "v_prediction"}
    config.write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.fixture
def texts(tiny_model):
    from trainer.families import load_model

    return load_model(str(tiny_model)).encode_text(["a red star growing", ""]).split(1)


def few_step_clip(native, model, texts):
    """Latents (1, 4, F, h, w) of MODEL ``model`` in the noise order of the trainer."""
    import comfy.sample

    sampling, latents = native("sampling"), native("latents")
    model = latents.model_for_frames(sampling.apply_model_sampling(model), FRAMES)
    latent = latents.empty_latents(SIDE * 8, SIDE * 8, FRAMES, 1, model)
    with torch.inference_mode():
        out = comfy.sample.sample_custom(
            model,
            sampling.StartNoise(SEED, "video").generate_noise(latent),
            1.0,
            sampling.few_step_sampler("video"),
            sampling.few_step_sigmas(model, STEPS),
            [[texts[0], {}]],
            [[texts[1], {}]],
            latent["samples"],
            seed=SEED,
            disable_pbar=True,
        )
        rows = model.model.process_latent_in(out).clone()
    return rows.unflatten(0, (1, FRAMES)).transpose(1, 2)


def test_a_folder_that_predicts_v_makes_the_clips_of_the_trainer(native, velocity_folder, texts):
    from trainer.diffusion.sampling import sample_lcm
    from trainer.families import load_model

    trained = load_model(str(velocity_folder))
    wanted = sample_lcm(
        trained.predict, trained.noise, texts[0], (1, 4, FRAMES, SIDE, SIDE), STEPS, seed=SEED
    )
    model = native("model").load_native_model(velocity_folder, "fp32")
    found = few_step_clip(native, model, texts)
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def test_a_sampling_node_upstream_keeps_its_prediction_under_a_few_step_lora(
    native, tiny_model, velocity_folder, texts
):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    base = native("model").load_native_model(tiny_model, "fp32")
    (patched,) = ModelSamplingDiscrete().patch(base, "v_prediction", False)
    declared = native("model").load_native_model(velocity_folder, "fp32")
    found, wanted = (few_step_clip(native, model, texts) for model in (patched, declared))
    assert torch.equal(found, wanted)
    (other,) = ModelSamplingDiscrete().patch(base, "x0", False)
    with pytest.raises(ValueError, match="sampled as .*predict noise .eps. or velocity"):
        native("sampling").apply_model_sampling(other)


@pytest.mark.parametrize("wrong", ["sample", "flow_prediction"])
def test_another_prediction_is_refused_by_name(native, velocity_folder, wrong):
    config = velocity_folder / "scheduler" / "scheduler_config.json"
    told = {**json.loads(config.read_text(encoding="utf-8")), "prediction_type": wrong}
    config.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match=f"`prediction_type`='{wrong}'"):
        native("model").load_native_model(velocity_folder, "fp32")


def test_a_clip_of_nan_is_an_error_that_names_the_weights(native, tiny_model, texts):
    model = native("model").load_native_model(tiny_model, "fp32")
    with torch.no_grad():
        next(model.model.diffusion_model.conv_out.parameters())[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN .*weights of the .*first: conv_out\.weight"):
        few_step_clip(native, model, texts)


def test_a_vae_that_decodes_nan_says_so(native, tiny_model):
    vae = native("vae").load_native_vae(tiny_model / "vae")
    rows = torch.zeros(2, 4, SIDE, SIDE)
    assert torch.isfinite(vae.decode(rows)).all()
    with torch.no_grad():
        next(vae.first_stage_model.taesd_decoder.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match="decoded clip holds NaN .*weights of the TAESD"):
        vae.decode(rows)


def test_the_folders_own_notes_set_numbers_and_names_only(native, velocity_folder):
    notes = velocity_folder / "mcm.json"
    for entry in ({"frames": "/etc/passwd"}, {"name": "../else"}, {"fps": 0}, {"width": True}):
        notes.write_text(json.dumps(entry), encoding="utf-8")
        with pytest.raises(ValueError, match=f"`{next(iter(entry))}`=.*mcm.json"):
            native("model").load_native_model(velocity_folder, "fp32")
