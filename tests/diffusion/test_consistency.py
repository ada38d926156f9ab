"""The consistency function is `LCMScheduler`'s, and the identity at the clean end of every path."""

from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler

from trainer.diffusion.noise import RectifiedFlow, VariancePreserving, boundary_scalings

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PATH = VariancePreserving.from_config(CONFIG)
VELOCITY = VariancePreserving.from_config(CONFIG | {"prediction_type": "v_prediction"})


def noise(seed: int, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 2, 3, 3, generator=generator, dtype=torch.float64)


def consistent(path, z, output, level):
    return path.consistency(z, path.read(z, output, level).x0, level)


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


@pytest.mark.parametrize("path", [PATH, VELOCITY, PATH.bounded(0.1, 7.0)])
@pytest.mark.parametrize("t", [0, -1])
def test_the_boundary_is_the_identity_whatever_the_model_says(path, t):
    level = torch.full((3,), t)
    assert torch.equal(consistent(path, noise(0), noise(1) * 100, level), noise(0))


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_clean_end_of_a_flow_is_the_identity_whatever_the_model_says(shift):
    path = RectifiedFlow(shift)
    assert torch.equal(consistent(path, noise(0), noise(1) * 100, torch.zeros(3)), noise(0))


def test_a_step_to_level_zero_reaches_the_boundary():
    """0 is where the step below the lowest level of a trajectory ends."""
    for path, level in ((PATH, torch.zeros(3).long()), (RectifiedFlow(5.0), torch.zeros(3))):
        z = path.add_noise(noise(0), noise(1), level)
        assert torch.equal(consistent(path, z, noise(2), level), z)
    power = PATH.alphas_cumprod[0].double()
    z = PATH.add_noise(noise(0), noise(1), torch.zeros(3).long())
    torch.testing.assert_close(z, power.sqrt() * noise(0) + (1 - power).sqrt() * noise(1))


def test_a_true_prediction_gives_the_clip_at_every_level():
    x0, eps = noise(0), noise(1)
    for t in PATH.levels(50)[[0, 20, 49]]:
        latents = PATH.add_noise(x0, eps, t.repeat(3))
        clip = consistent(PATH, latents, eps, t.repeat(3))
        c_skip, c_out = (c.double() for c in boundary_scalings(t))
        torch.testing.assert_close(clip, c_out * x0 + c_skip * latents, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(clip, x0, rtol=1e-3, atol=1e-3)
    path = RectifiedFlow(shift=5.0)
    for level in path.levels(50)[[0, 20, 49]]:
        latents = path.add_noise(x0, eps, level.repeat(3))
        clip = consistent(path, latents, eps - x0, level.repeat(3))
        torch.testing.assert_close(clip, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [PATH, VELOCITY])
def test_equals_the_denoised_clip_of_the_lcm_scheduler(path):
    scheduler = LCMScheduler(**CONFIG, timestep_scaling=4.0, prediction_type=path.prediction)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    latents, output = noise(0), noise(1)
    for t in (999, 259, 19):
        scheduler.set_timesteps(50)
        expected = scheduler.step(output, t, latents, torch.Generator().manual_seed(0)).denoised
        clip = consistent(path, latents, output, torch.full((3,), t))
        torch.testing.assert_close(clip, expected, rtol=1e-6, atol=1e-6)


def test_constants_are_those_it_was_bounded_with():
    level, bounded = torch.full((3,), 19), PATH.bounded(0.1, 7.0)
    c_skip, c_out = (float(c[0]) for c in boundary_scalings(level, 0.1, 7.0))
    assert (c_skip, c_out) == pytest.approx((49 / (1.9**2 + 49), 1.9 / (1.9**2 + 49) ** 0.5))
    expected = c_skip * noise(0) + c_out * noise(1)
    torch.testing.assert_close(bounded.consistency(noise(0), noise(1), level), expected)
    assert (PATH.consistency(noise(0), noise(1), level) - expected).abs().max() > 0.1
    flow = RectifiedFlow(5.0)
    assert flow.bounded(0.1, 7.0) == flow, "it has no constants"


def test_mixed_levels_equal_each_video_alone():
    latents, output = noise(0), noise(1)
    for path, level in (
        (PATH, torch.tensor([999, 0, 259])),
        (RectifiedFlow(5.0), torch.tensor([1.0, 0.0, 0.3])),
    ):
        together = consistent(path, latents, output, level)
        for i in range(3):
            one = slice(i, i + 1)
            alone = consistent(path, latents[one], output[one], level[one])
            assert torch.equal(together[one], alone)


def test_half_precision_comes_back_as_float32():
    latents, output = noise(0).half(), noise(1).half()
    for path, level in (
        (PATH, torch.tensor([19, 499, 999])),
        (RectifiedFlow(), torch.tensor([0.02, 0.5, 1.0])),
    ):
        assert consistent(path, latents, output, level).dtype == torch.float32
