"""The experts of Wan 2.2 14B on ComfyUI's own samplers: states and clips are the trainer's."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
import wan_files

SHAPE = (2, 16, 3, 4, 6)
SEED, SHIFT, BOUNDARY = 11, 7.0, 0.875
PROMPT = "a red star moving up"


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Wide enough in text for ComfyUI."""
    models = tmp_path_factory.mktemp("ComfyUI") / "models"
    wan21 = wan_files.save_for_core(models)
    found = {}
    for seed, (which, name) in enumerate(wan_files.EXPERTS.items(), start=5):
        network = wan_files.build_transformer(text_dim=4096, seed=seed)
        state = wan_files.original(network.state_dict())
        found[which] = wan_files.save_half(state, wan21.with_name(name), torch.float32)
    return found


@pytest.fixture(scope="module")
def trained(files):
    from trainer.families import load_model

    return {which: load_model(str(file)) for which, file in files.items()}


@pytest.fixture(scope="module")
def models(comfy, files):
    import comfy.sd

    return {which: comfy.sd.load_diffusion_model(str(file)) for which, file in files.items()}


@pytest.fixture(scope="module")
def text(trained):
    return trained["high"].encode_text([PROMPT])


def near(found, wanted, tolerance=1e-3):
    return float((found - wanted).norm() / wanted.norm()) <= tolerance


def core_shift(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, SHIFT)[0]


@torch.no_grad()
def half(model, text, latents, sampler, steps, first):
    """What KSampler (Advanced) gives for one half of ``steps``."""
    from nodes import KSamplerAdvanced

    cond = [[text, {}]]
    middle = steps // 2
    given = (steps, 1.0, sampler, "simple", cond, cond, {"samples": latents})
    span = (0, middle, "enable") if first else (middle, steps, "disable")
    switch = "enable" if first else "disable"
    return KSamplerAdvanced().sample(model, switch, SEED, *given, *span)[0]["samples"]


def wanted_states(trained, text, steps, start):
    from trainer.diffusion.sampling import sample_lcm

    model, states = trained["high"], text.expand(SHAPE[0], -1, -1)
    return sample_lcm(model.predict, model.noise, states, SHAPE, steps, original_steps=24,
                      init_latents=start, seed=0)  # fmt: skip


def state_of(model, leftover):
    """The state in the sampler's own latents that "leftover noise" stands for."""
    return (1 - BOUNDARY) * model.model.latent_format.process_in(leftover)


def test_a_step_of_cores_euler_is_the_first_students(trained, models, text):
    import comfy.sample

    start = comfy.sample.prepare_noise(torch.zeros(SHAPE), SEED)
    model = core_shift(models["high"])
    found = half(model, text, torch.zeros(SHAPE), "euler", 2, first=True)
    assert near(state_of(model, found), wanted_states(trained, text, 1, start))


def test_the_second_student_goes_on_from_the_states_of_the_first(trained, models, text):
    from trainer.diffusion.sampling import sample_lcm

    first, second = core_shift(models["high"]), core_shift(models["low"])
    leftover = half(first, text, torch.zeros(SHAPE), "euler", 2, first=True)
    found = half(second, text, leftover, "lcm", 2, first=False)
    model, states = trained["low"], text.expand(SHAPE[0], -1, -1)
    clip = sample_lcm(model.predict, model.noise, states, SHAPE, 1, original_steps=24,
                      init_latents=state_of(first, leftover), seed=0)  # fmt: skip
    assert near(second.model.latent_format.process_in(found), clip)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_our_sampling_the_first_takes_any_number_of_steps(
    native, trained, models, text, steps
):
    """By `lcm`, with new noise on states; in the trainer's order of noise, so that it is equal."""
    import comfy.samplers

    from trainer.diffusion.sampling import sample_lcm

    sampling = native("sampling")
    model = sampling.apply_model_sampling(models["high"], shift=SHIFT, low=BOUNDARY)
    start = sampling.StartNoise(SEED, "video").generate_noise({"samples": torch.zeros(SHAPE)})
    levels = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", 2 * steps
    )[: steps + 1]
    assert float(levels[-1]) == BOUNDARY
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, {}]], [[text, {}]])
    guider.set_cfg(1.0)
    sampler = sampling.few_step_sampler("video")
    found = guider.sample(start, torch.zeros(SHAPE), sampler, levels, seed=SEED)
    high, states = trained["high"], text.expand(SHAPE[0], -1, -1)
    wanted = sample_lcm(high.predict, high.noise, states, SHAPE, steps, original_steps=24,
                        seed=SEED)  # fmt: skip
    assert near(state_of(model, found), wanted)


def test_their_loras_say_which_they_are_for(native, trained, models, tmp_path, monkeypatch, caplog):
    """The weights do not, so the names of the files are compared."""
    import folder_paths

    from trainer.lora.adapter import add_lora, lora_state
    from trainer.lora.export import export_file
    from trainer.lora.metadata import LoraCard, build_metadata

    network = copy.deepcopy(trained["high"].network)
    add_lora(network, 2, 2.0)
    card = LoraCard(
        title="Ink", family="wan", base_model="tiny", base_hash="", base_license="Apache-2.0",
        frames=9, width=48, height=32, fps=16, prediction_type="velocity", shift=SHIFT,
        original_steps=24, steps_allowed=(2, 4, 8), low=BOUNDARY, high=1.0, part="high noise",
    )  # fmt: skip
    pairs = lora_state(network)
    export_file(pairs, tmp_path / "ink.safetensors", build_metadata(card, pairs))
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    found, summary = native("lora_info").lora_info("ink.safetensors")
    assert found.part == "high noise" and found.sampling["low"] == BOUNDARY
    assert "for the high noise expert alone" in summary and "shift 7" in summary
    load = native("lora").load_lora
    load(models["high"], "ink.safetensors", 1.0)
    assert "connect the other network" not in caplog.text
    load(models["low"], "ink.safetensors", 1.0)
    assert "is for the high noise expert, but" in caplog.text
