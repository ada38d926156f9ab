"""The noise schedule agrees with diffusers, and its conversions undo each other."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from trainer.diffusion.noise import VariancePreserving

MODELSCOPE = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
ANIMATEDIFF = {**MODELSCOPE, "beta_schedule": "linear", "set_alpha_to_one": True}
TIMESTEPS = torch.tensor([19, 499, 999])


def noise(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 2, 2, 3, generator=generator, dtype=dtype)


@pytest.mark.parametrize("config", [MODELSCOPE, ANIMATEDIFF])
@pytest.mark.parametrize("rescale", [False, True])
def test_table_is_that_of_diffusers(config, rescale):
    config = {**config, "rescale_betas_zero_snr": rescale}
    schedule = VariancePreserving.from_config(config)
    expected = DDIMScheduler.from_config(config)
    assert torch.equal(schedule.alphas_cumprod, expected.alphas_cumprod)
    assert schedule.alphas_cumprod.shape == (1000,)
    assert schedule.alphas_cumprod.dtype == torch.float32
    assert schedule.final_alpha_cumprod == float(expected.final_alpha_cumprod)
    assert schedule.train_timesteps == 1000


def test_linear_and_scaled_linear_betas_differ():
    a = VariancePreserving.from_config(MODELSCOPE).alphas_cumprod
    b = VariancePreserving.from_config(ANIMATEDIFF).alphas_cumprod
    assert (a - b).abs().max() > 0.05


def test_trained_betas_are_used():
    schedule = VariancePreserving.from_config({"trained_betas": [0.5, 0.5]})
    assert schedule.alphas_cumprod.tolist() == [0.5, 0.25]


def test_resolved_config_builds_the_same_schedule():
    schedule = VariancePreserving.from_config(ANIMATEDIFF)
    again = VariancePreserving.from_config(schedule.config)
    assert torch.equal(schedule.alphas_cumprod, again.alphas_cumprod)
    assert again.config == schedule.config


@pytest.mark.parametrize("key", ["beta_start", "beta_end", "beta_schedule"])
def test_a_config_without_betas_is_refused(key):
    config = {k: v for k, v in MODELSCOPE.items() if k != key}
    with pytest.raises(ValueError, match=f"lacks \\['{key}'\\]"):
        VariancePreserving.from_config(config)


def test_an_unknown_beta_schedule_is_refused():
    with pytest.raises(ValueError, match="`beta_schedule`='sine' is not supported"):
        VariancePreserving.from_config({**MODELSCOPE, "beta_schedule": "sine"})


def test_a_half_precision_table_is_refused():
    with pytest.raises(ValueError, match="one-dimensional float32"):
        VariancePreserving(torch.ones(10, dtype=torch.float16))


def test_add_noise_and_velocity_equal_diffusers():
    schedule, expected = (
        VariancePreserving.from_config(MODELSCOPE),
        DDIMScheduler.from_config(MODELSCOPE),
    )
    x0, eps = noise(0), noise(1)
    torch.testing.assert_close(
        schedule.add_noise(x0, eps, TIMESTEPS), expected.add_noise(x0, eps, TIMESTEPS)
    )
    torch.testing.assert_close(
        schedule.v_from_x0_eps(x0, eps, TIMESTEPS), expected.get_velocity(x0, eps, TIMESTEPS)
    )


@pytest.mark.parametrize("config", [MODELSCOPE, ANIMATEDIFF])
def test_conversions_are_round_trips_in_float64(config):
    schedule = VariancePreserving.from_config(config)
    x0, eps = noise(0), noise(1)
    latents = schedule.add_noise(x0, eps, TIMESTEPS)
    v = schedule.v_from_x0_eps(x0, eps, TIMESTEPS)
    near = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(schedule.x0_from_eps(latents, eps, TIMESTEPS), x0, **near)
    torch.testing.assert_close(schedule.eps_from_x0(latents, x0, TIMESTEPS), eps, **near)
    torch.testing.assert_close(schedule.x0_from_v(latents, v, TIMESTEPS), x0, **near)
    torch.testing.assert_close(schedule.eps_from_v(latents, v, TIMESTEPS), eps, **near)


def test_every_video_of_a_batch_has_its_own_timestep():
    schedule = VariancePreserving.from_config(MODELSCOPE)
    x0, eps = noise(0), noise(1)
    together = schedule.add_noise(x0, eps, TIMESTEPS)
    for i in range(3):
        alone = schedule.add_noise(x0[i : i + 1], eps[i : i + 1], TIMESTEPS[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)
    assert torch.equal(schedule.add_noise(x0, eps, TIMESTEPS[0])[0], together[0])


def test_minus_one_is_the_clean_end():
    t = torch.tensor([-1, 0, -1])
    clean = VariancePreserving.from_config(ANIMATEDIFF).add_noise(noise(0), noise(1), t)
    assert torch.equal(clean[0], noise(0)[0])
    assert not torch.equal(clean[1], noise(0)[1])
    schedule = VariancePreserving.from_config(MODELSCOPE)  # set_alpha_to_one: false
    alpha, _ = schedule.alpha_sigma(t, 5)
    assert alpha.shape == (3, 1, 1, 1, 1)
    assert alpha[0] == alpha[1] == schedule.alphas_cumprod[0].sqrt()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_float32(half):
    schedule = VariancePreserving.from_config(MODELSCOPE)
    x0, eps = noise(0, torch.float32).to(half), noise(1, torch.float32).to(half)
    latents = schedule.add_noise(x0, eps, TIMESTEPS)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, schedule.add_noise(x0.float(), eps.float(), TIMESTEPS))
    assert schedule.x0_from_eps(x0, eps, TIMESTEPS).dtype == torch.float32


def test_to_moves_the_table_and_keeps_the_rest():
    schedule = VariancePreserving.from_config(MODELSCOPE)
    moved = schedule.to("meta")
    assert moved.alphas_cumprod.device.type == "meta"
    assert schedule.alphas_cumprod.device.type == "cpu"
    assert moved.config == schedule.config
    assert moved.final_alpha_cumprod == schedule.final_alpha_cumprod


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), "must be integer timesteps"),
        (torch.zeros(3, 1, dtype=torch.long), "must be integer timesteps"),
        (torch.tensor([1, 2]), "2 timesteps for a batch of 3"),
    ],
)
def test_unfit_timesteps_are_refused(t, message):
    with pytest.raises(ValueError, match=message):
        VariancePreserving.from_config(MODELSCOPE).add_noise(noise(0), noise(1), t)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        VariancePreserving.from_config(MODELSCOPE).add_noise(noise(0), noise(1)[:1], TIMESTEPS)


def test_files_and_schedule_know_the_same_predictions():
    from trainer.diffusion.noise import PREDICTIONS as of_schedules
    from trainer.models.prediction import PREDICTIONS as of_files

    assert of_schedules == of_files
