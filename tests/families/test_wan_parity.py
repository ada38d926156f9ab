"""Wan's predictions and samples are those of diffusers, at tiny size in fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import wan_files
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from diffusers.utils.torch_utils import randn_tensor

from trainer.diffusion.noise import guided
from trainer.diffusion.sampling import sample_lcm, sample_ode
from trainer.families import load_model

SHAPE = (1, 16, 3, 4, 6)
INTERVALS = 48  # divided by 1, 2, 4 and 8: few steps take every 48th, 24th, 12th, 6th


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    models = wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")
    (file,) = (models / "diffusion_models").iterdir()
    return load_model(str(file))


@pytest.fixture(scope="module")
def network():
    """diffusers' own, with the numbers of the file, which are fp16."""
    network = wan_files.build_transformer()
    network.load_state_dict({k: v.half().float() for k, v in network.state_dict().items()})
    return network


@pytest.fixture(scope="module")
def text(model):
    return model.encode_text(["a red star moving up"])


def close(ours, theirs):
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@torch.no_grad()
@pytest.mark.parametrize("level", [1.0, 0.8333, 0.0])
def test_the_forward_is_diffusers(model, network, text, level):
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    ours = model.predict(latents, torch.tensor([level]), text)
    close(ours, network(latents, torch.tensor([1000 * level]), text).sample)


@torch.no_grad()
def test_eight_guided_steps_are_flow_euler(model, network, text):
    empty, guidance = model.encode_text([""]), 5.0
    scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    latents = randn_tensor(SHAPE, torch.Generator().manual_seed(7))
    for time in scheduler.timesteps:
        cond, uncond = (network(latents, time[None], t).sample for t in (text, empty))
        velocity = guided(cond, uncond, guidance - 1)
        latents = scheduler.step(velocity, time, latents).prev_sample
    ours = sample_ode(model.predict, model.noise, text, SHAPE, 8, seed=7, negative_text=empty,
                      guidance_scale=guidance)  # fmt: skip
    close(ours, latents)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_few_steps_are_flow_lcm(model, network, text, steps):
    scheduler = FlowMatchLCMScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    generator = torch.Generator().manual_seed(7)
    latents = randn_tensor(SHAPE, generator)
    for time in scheduler.timesteps:
        velocity = network(latents, time[None], text).sample
        latents = scheduler.step(velocity, time, latents, generator=generator).prev_sample
    ours = sample_lcm(model.predict, model.noise, text, SHAPE, steps, original_steps=INTERVALS,
                      seed=7)  # fmt: skip
    close(ours, latents)


def test_few_steps_are_at_comfyuis_own_levels(model):
    """KSampler's `simple` with ModelSamplingSD3 at shift 5."""
    levels = model.noise.levels(INTERVALS)
    for steps, wanted in {
        2: [1, 0.8333],
        4: [1, 0.9375, 0.8333, 0.625],
        8: [1, 0.9722, 0.9375, 0.8929, 0.8333, 0.75, 0.625, 0.4167],
    }.items():
        found = [float(levels[place]) for place in range(INTERVALS - 1, -1, -INTERVALS // steps)]
        assert np.allclose(found, wanted, atol=1e-4)
