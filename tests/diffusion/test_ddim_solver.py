"""The DDIM solver equals diffusers' `DDIMScheduler`, and follows LCM's trajectory."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from trainer.diffusion.noise import VariancePreserving
from trainer.diffusion.noise import ddim_step, ddim_timesteps, guided_eps, previous_timestep

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def noise(seed: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 3, 2, 2, generator=generator, dtype=torch.float64)


def toy_eps(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(latents * 1.3 + t.reshape(-1, 1, 1, 1, 1) / 700) * 0.9


def double_ddim(steps: int, set_alpha_to_one: bool) -> DDIMScheduler:
    """diffusers' scheduler with its float32 table widened, to compare float64 results."""
    scheduler = DDIMScheduler(
        **CONFIG,
        clip_sample=False,
        set_alpha_to_one=set_alpha_to_one,
        timestep_spacing="trailing",
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    return scheduler


def test_timesteps_are_those_of_lcm():
    timesteps = ddim_timesteps()
    assert timesteps.dtype == torch.long
    assert timesteps.tolist() == list(range(19, 1000, 20))
    assert ddim_timesteps(4).tolist() == [249, 499, 749, 999]


def test_previous_timestep_walks_down_the_trajectory_to_zero():
    timesteps = ddim_timesteps()
    assert previous_timestep(timesteps).tolist() == [0, *timesteps[:-1].tolist()]
    assert previous_timestep(torch.tensor([249]), count=4).tolist() == [0]


@pytest.mark.parametrize("count", [0, 1001])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(ValueError, match=f"`count`={count} trajectory timesteps; use 1 to 1000"):
        ddim_timesteps(count)
    with pytest.raises(ValueError, match="trajectory timesteps"):
        previous_timestep(torch.tensor([19]), count)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_a_rollout_equals_diffusers_ddim(steps, set_alpha_to_one):
    scheduler = double_ddim(steps, set_alpha_to_one)
    schedule = VariancePreserving.from_config({**CONFIG, "set_alpha_to_one": set_alpha_to_one})
    expected = ours = noise(0)
    for t in scheduler.timesteps:
        batch_t = t.repeat(2)
        expected = scheduler.step(toy_eps(expected, batch_t), t, expected).prev_sample
        eps = toy_eps(ours, batch_t)
        x0 = schedule.x0_from_eps(ours, eps, batch_t)
        ours = ddim_step(x0, eps, (batch_t - 1000 // steps).clamp(min=-1), schedule)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_the_last_trajectory_step_ends_at_the_level_of_timestep_zero():
    schedule = VariancePreserving.from_config(CONFIG)
    x0, eps = noise(0), noise(1)
    level = schedule.alphas_cumprod[0].double()
    z = ddim_step(x0, eps, previous_timestep(torch.tensor([19, 19])), schedule)
    torch.testing.assert_close(z, level.sqrt() * x0 + (1 - level).sqrt() * eps)
    assert torch.equal(ddim_step(x0, eps, torch.tensor([-1, -1]), schedule), x0)


def test_steps_with_the_true_noise_stay_on_the_straight_trajectory():
    schedule = VariancePreserving.from_config(CONFIG)
    x0, eps = noise(0), noise(1)
    start, end = torch.tensor([999, 519]), torch.tensor([499, 19])
    latents = schedule.add_noise(x0, eps, start)
    seen = schedule.x0_from_eps(latents, eps, start)
    torch.testing.assert_close(
        ddim_step(seen, eps, end, schedule), schedule.add_noise(x0, eps, end), rtol=1e-9, atol=1e-9
    )


def test_guidance_is_the_usual_one_with_a_scale_of_w_plus_one():
    cond, uncond = noise(0), noise(1)
    torch.testing.assert_close(guided_eps(cond, uncond, 6.5), uncond + 7.5 * (cond - uncond))
    assert torch.equal(guided_eps(cond, uncond, 0.0), cond)


def test_guidance_takes_one_weight_a_video():
    cond, uncond = noise(0), noise(1)
    guided = guided_eps(cond, uncond, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(guided[:1], guided_eps(cond[:1], uncond[:1], 1.0))
    torch.testing.assert_close(guided[1:], guided_eps(cond[1:], uncond[1:], 3.0))
