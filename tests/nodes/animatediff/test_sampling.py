"""Whole clips: ComfyUI's samplers on the MODEL against diffusers' `AnimateDiffPipeline`."""

from __future__ import annotations

import pytest
import torch

TOLERANCE = 1e-5
FRAMES = 4
SIZE = 8


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 7, 768, generator=generator)
    negative = torch.randn(1, 7, 768, generator=generator)
    return text, negative, torch.randn(1, 4, FRAMES, SIZE, SIZE, generator=generator)


@pytest.fixture
def pipeline(tiny):
    """`pipeline(scheduler) -> AnimateDiffPipeline` that samples latents."""
    from diffusers import AnimateDiffPipeline, AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )

    def make(scheduler):
        parts = {"text_encoder": None, "tokenizer": None, "motion_adapter": None}
        pipe = AnimateDiffPipeline(vae=vae, unet=tiny.reference(), scheduler=scheduler, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def assert_parity(found, pipeline, scheduler, inputs, steps, cfg):
    wanted = diffusers_clip(pipeline(scheduler), inputs, steps, cfg)
    assert relative(found, wanted) <= TOLERANCE


def diffusers_clip(pipe, inputs, steps, cfg):
    """Latents (F, 4, h, w) of the pipeline."""
    text, negative, noise = inputs
    clip = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        latents=noise.clone(),
        num_frames=FRAMES,
        height=SIZE * 8,
        width=SIZE * 8,
        num_inference_steps=steps,
        guidance_scale=cfg,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
    ).frames
    return clip[0].transpose(0, 1)


def comfy_clip(model, inputs, sampler, sigmas, cfg):
    """Latents (F, 4, h, w) of ComfyUI's custom sampling, in the UNet's scale."""
    import comfy.sample

    text, negative, noise = inputs
    rows = noise[0].transpose(0, 1)
    with torch.inference_mode():
        latents = comfy.sample.sample_custom(
            model,
            rows,
            cfg,
            sampler,
            sigmas,
            [[text, {}]],
            [[negative, {}]],
            torch.zeros_like(rows),
            disable_pbar=True,
            seed=7,
        )
    return model.model.process_latent_in(latents)


def sigmas_of(model, timesteps):
    table = model.get_model_object("model_sampling").sigmas
    return torch.cat([table[timesteps.long()], torch.zeros(1)])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_euler_is_the_pipelines_ddim(clip_model, mcm, pipeline, inputs, steps, cfg):
    import comfy.samplers
    from diffusers import DDIMScheduler

    config = mcm.info.video_info(clip_model).scheduler_config
    # Euler ends at no noise, so DDIM must too.
    ending = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    scheduler = DDIMScheduler(**{**config, **ending})
    scheduler.set_timesteps(steps)
    sigmas = sigmas_of(clip_model, scheduler.timesteps)
    found = comfy_clip(clip_model, inputs, comfy.samplers.sampler_object("euler"), sigmas, cfg)
    assert_parity(found, pipeline, scheduler, inputs, steps, cfg)


class PipelineNoise:
    """Re-noising of LCM in diffusers' order: one generator, (1, C, F, h, w) a step."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, sigma, sigma_next):
        return torch.randn(1, 4, FRAMES, SIZE, SIZE, generator=self.generator)[0].transpose(0, 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_cores_lcm_sampler_is_the_pipelines_lcm(clip_model, mcm, pipeline, inputs, steps, cfg):
    """Core's step has no boundary condition; a huge `timestep_scaling` switches off diffusers'."""
    import comfy.samplers
    from diffusers import LCMScheduler

    config = mcm.info.video_info(clip_model).scheduler_config
    scheduler = LCMScheduler(**config, timestep_scaling=1e6, original_inference_steps=50)
    scheduler.set_timesteps(steps)
    sigmas = sigmas_of(clip_model, scheduler.timesteps)
    sampler = comfy.samplers.ksampler("lcm", {"noise_sampler": PipelineNoise(7)})
    found = comfy_clip(clip_model, inputs, sampler, sigmas, cfg)
    assert_parity(found, pipeline, scheduler, inputs, steps, cfg)
