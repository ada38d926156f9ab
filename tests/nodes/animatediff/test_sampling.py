"""Whole clips: ComfyUI's samplers on the MODEL against diffusers' `AnimateDiffPipeline`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

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


VELOCITY_STEPS = 4


@pytest.fixture
def velocity_node(comfy):
    """`velocity_node(model, sampling="v_prediction", zsnr=False) -> MODEL` by core's node."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def patch(model, sampling="v_prediction", zsnr=False):
        return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]

    return patch


@pytest.fixture
def from_file(sd15, tmp_path):
    """`from_file(keys, metadata) -> MODEL` that ComfyUI loaded from such a checkpoint."""

    def make(*keys, metadata=None):
        path = tmp_path / "v Stil ä.safetensors"
        state = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
        save_file({**state, **{key: torch.zeros(0) for key in keys}}, path, metadata=metadata)
        sd15.cached_patcher_init = (lambda *_, **__: sd15, (str(path),))
        return sd15

    return make


def assert_velocity(model, mcm, pipeline, inputs):
    import comfy.samplers
    from diffusers import DDIMScheduler

    config = mcm.info.video_info(model).scheduler_config
    assert config["prediction_type"] == "v_prediction"
    ending = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    scheduler = DDIMScheduler(**{**config, **ending})
    scheduler.set_timesteps(VELOCITY_STEPS)
    euler = comfy.samplers.sampler_object("euler")
    found = comfy_clip(model, inputs, euler, sigmas_of(model, scheduler.timesteps), 1.0)
    assert_parity(found, pipeline, scheduler, inputs, VELOCITY_STEPS, 1.0)


def test_the_prediction_of_a_node_upstream_is_kept(
    mcm, sd15, motion, velocity_node, pipeline, inputs, caplog
):  # fmt: skip
    model = mcm.animatediff.apply_motion_module(velocity_node(sd15), motion)
    assert_velocity(model, mcm, pipeline, inputs)
    assert "do not work" not in caplog.text


def test_noise_levels_of_a_node_upstream_are_reported(
    mcm, sd15, motion, velocity_node, caplog
):  # fmt: skip
    model = mcm.animatediff.apply_motion_module(velocity_node(sd15, zsnr=True), motion)
    assert mcm.info.video_info(model).scheduler_config["prediction_type"] == "v_prediction"
    assert "do not work" in caplog.text and "model_sampling" in caplog.text


def test_other_predictions_upstream_are_refused(mcm, sd15, motion, velocity_node):
    with pytest.raises(ValueError, match="sampled as .*predict noise .eps. or velocity"):
        mcm.animatediff.apply_motion_module(velocity_node(sd15, "x0"), motion)


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [(("v_pred",), None), ((), {"modelspec.prediction_type": "v"})],
)
def test_a_checkpoint_that_says_v_is_sampled_as_v(
    mcm, from_file, motion, pipeline, inputs, keys, metadata, caplog
):  # fmt: skip
    model = mcm.animatediff.apply_motion_module(from_file(*keys, metadata=metadata), motion)
    assert_velocity(model, mcm, pipeline, inputs)
    assert "predicts v_prediction" in caplog.text


def test_the_users_own_node_wins_over_the_file(mcm, from_file, motion, velocity_node):
    model = mcm.animatediff.apply_motion_module(velocity_node(from_file("v_pred"), "eps"), motion)
    assert mcm.info.video_info(model).scheduler_config["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("v_pred", "ztsnr"), "zero terminal SNR"),
        (("model.diffusion_model.time_embed.cond_proj.weight",), "distilled with LCM"),
    ],
)
def test_kinds_of_checkpoints_that_cannot_be_used_are_named(mcm, from_file, motion, keys, message):
    with pytest.raises(ValueError, match=f"v Stil ä.*{message}"):
        mcm.animatediff.apply_motion_module(from_file(*keys), motion)
