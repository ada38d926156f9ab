"""The consistency function is `LCMScheduler`'s, and the identity at timestep 0."""

from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler

from trainer.diffusion.noise import (
    boundary_scalings,
    consistency_function,
    few_step_timesteps,
)
from trainer.diffusion.noise import VariancePreserving
from trainer.diffusion.noise import ddim_step, ddim_timesteps, previous_timestep

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = VariancePreserving.from_config(CONFIG)


def noise(seed: int, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 2, 3, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scaling", [4.0, 10.0])
def test_scalings_are_those_of_the_lcm_scheduler(scaling):
    scheduler = LCMScheduler(timestep_scaling=scaling)
    timesteps = torch.tensor([0, 1, 19, 499, 999])
    c_skip, c_out = boundary_scalings(timesteps, scaling)
    assert c_skip.dtype == c_out.dtype == torch.float32
    for i, t in enumerate(timesteps.tolist()):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert float(c_skip[i]) == pytest.approx(skip, rel=1e-6)
        assert float(c_out[i]) == pytest.approx(out, rel=1e-6)


def test_the_boundary_is_the_identity_whatever_the_model_says():
    for t in (0, -1):
        latents = noise(0)
        clip = consistency_function(latents, noise(1) * 100, torch.full((3,), t), SCHEDULE)
        assert torch.equal(clip, latents)


def test_the_step_below_the_lowest_timestep_reaches_the_boundary():
    t = previous_timestep(ddim_timesteps()[:1]).repeat(3)
    latents = ddim_step(noise(0), noise(1), t, SCHEDULE)
    assert torch.equal(consistency_function(latents, noise(2), t, SCHEDULE), latents)


def test_a_true_noise_prediction_gives_the_clip_at_every_timestep():
    x0, eps = noise(0), noise(1)
    for t in ddim_timesteps()[[0, 20, 49]]:
        latents = SCHEDULE.add_noise(x0, eps, t.repeat(3))
        clip = consistency_function(latents, eps, t.repeat(3), SCHEDULE)
        c_skip, c_out = (c.double() for c in boundary_scalings(t))
        torch.testing.assert_close(clip, c_out * x0 + c_skip * latents, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(clip, x0, rtol=1e-3, atol=1e-3)


def test_equals_the_denoised_clip_of_the_lcm_scheduler():
    scheduler = LCMScheduler(**CONFIG, timestep_scaling=4.0)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    latents, eps = noise(0), noise(1)
    for t in (999, 259, 19):
        scheduler.set_timesteps(50)
        expected = scheduler.step(eps, t, latents, torch.Generator().manual_seed(0)).denoised
        clip = consistency_function(latents, eps, torch.full((3,), t), SCHEDULE)
        torch.testing.assert_close(clip, expected, rtol=1e-6, atol=1e-6)


def test_mixed_timesteps_equal_each_video_alone():
    latents, eps, t = noise(0), noise(1), torch.tensor([999, 0, 259])
    together = consistency_function(latents, eps, t, SCHEDULE)
    for i in range(3):
        one = slice(i, i + 1)
        alone = consistency_function(latents[one], eps[one], t[one], SCHEDULE)
        assert torch.equal(together[one], alone)


def test_half_precision_comes_back_as_float32():
    latents, eps = noise(0).half(), noise(1).half()
    clip = consistency_function(latents, eps, torch.tensor([19, 499, 999]), SCHEDULE)
    assert clip.dtype == torch.float32


def test_few_step_timesteps():
    assert few_step_timesteps(1).tolist() == [999]
    assert few_step_timesteps(2).tolist() == [999, 499]
    assert few_step_timesteps(4).tolist() == [999, 759, 499, 259]
    assert few_step_timesteps(8).tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    assert few_step_timesteps(50).tolist() == ddim_timesteps().flip(0).tolist()
    assert few_step_timesteps(2, count=10).tolist() == [999, 499]


@pytest.mark.parametrize("steps", [0, 51, -1, 2.0, True])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match="is not a number of sampling steps; use 1 to 50"):
        few_step_timesteps(steps)
