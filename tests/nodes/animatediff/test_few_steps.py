"""Few-step sampling, LoRAs and long clips on an AnimateDiff MODEL."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

FRAMES, SIDE, SEED = 4, 8, 7


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture
def text():
    return torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def pipeline_loop(unet, config, text, steps, frames=FRAMES):
    """The loop of `AnimateDiffPipeline` without guidance: noise and steps are (1, C, F, h, w)."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(**config, timestep_scaling=4.0, original_inference_steps=50)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, 4, frames, SIDE, SIDE, generator=generator)
    rows = text.repeat_interleave(frames, dim=0)
    for t in scheduler.timesteps:
        eps = unet(latents, t, encoder_hidden_states=rows).sample
        latents = scheduler.step(eps, t, latents, generator=generator).prev_sample
    return latents[0].transpose(0, 1)


def comfy_clip(native, model, text, steps, frames=FRAMES, order="video"):
    import comfy.sample

    sampling = native("sampling")
    latent = torch.zeros(frames, 4, SIDE, SIDE)
    with torch.inference_mode():
        out = comfy.sample.sample_custom(
            model,
            sampling.StartNoise(SEED, order).generate_noise({"samples": latent}),
            1.0,
            sampling.few_step_sampler(order),
            sampling.few_step_sigmas(model, steps),
            [[text, {}]],
            [[text * 0, {}]],
            latent,
            seed=SEED,
            disable_pbar=True,
        )
        return model.model.process_latent_in(out).clone()


def near(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5


@pytest.mark.parametrize("steps", [1, 4])
def test_the_video_order_is_the_pipelines_clip(native, clip_model, tiny, mcm, text, steps):
    config = mcm.info.video_info(clip_model).scheduler_config
    model = native("sampling").apply_model_sampling(clip_model)
    assert near(
        comfy_clip(native, model, text, steps), pipeline_loop(tiny.reference(), config, text, steps)
    )


def test_a_peft_lora_is_pefts_merge(native, clip_model, tiny, mcm, text, tmp_path, monkeypatch):
    import folder_paths
    from peft import PeftModel

    from trainer.lora.adapter import add_lora, lora_parameters, lora_state
    from trainer.lora.export import export_peft

    unet = tiny.reference()
    add_lora(unet, 2, 4.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    export_peft(lora_state(unet), tmp_path / "unet_lora")
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    merged = PeftModel.from_pretrained(tiny.reference(), tmp_path / "unet_lora").merge_and_unload()
    model = native("lora").load_lora(clip_model, "unet_lora", 1.0)
    config = mcm.info.video_info(clip_model).scheduler_config
    assert near(comfy_clip(native, model, text, 2), pipeline_loop(merged, config, text, 2))
    model.unpatch_model()


def test_a_long_clip_is_sampled_in_windows(native, clip_model, text):
    model = native("sampling").apply_model_sampling(clip_model)
    long = native("context").add_context_windows(model, FRAMES, 2)
    assert torch.isfinite(comfy_clip(native, long, text, 2, frames=11)).all()
    assert torch.equal(comfy_clip(native, long, text, 2), comfy_clip(native, model, text, 2))


@pytest.mark.parametrize("frames", [24, 40])
@pytest.mark.parametrize("schedule", ["standard_uniform", "looped_uniform"])
def test_longer_clips_in_windows(native, clip_model, frames, schedule):
    """Two long videos in one batch are the two alone."""
    import comfy.sample

    model = native("sampling").apply_model_sampling(clip_model)
    model = native("context").add_context_windows(model, 16, 4, schedule, True)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2 * frames, 4, 4, 4, generator=generator)
    text = [[torch.randn(1, 7, 768, generator=generator), {}]]

    def sample(start):
        latent = native("latents").video_latents(torch.zeros_like(start), frames)
        with torch.inference_mode():
            return comfy.sample.sample(
                model, start, 2, 1.0, "euler", "simple", text, text, latent, disable_pbar=True
            ).clone()

    both = sample(noise)
    for rows in (slice(0, frames), slice(frames, None)):
        alone = sample(noise[rows])
        assert float((both[rows] - alone).abs().max() / alone.abs().max()) <= 1e-5
