"""The samplers equal pipeline-style loops over diffusers' schedulers, clip by clip."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from trainer.diffusion.noise import consistency_function, few_step_timesteps
from trainer.diffusion.sampling import SAMPLERS, sample_ddim, sample_dpmpp, sample_lcm
from trainer.diffusion.noise import VariancePreserving

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "clip_sample": True,  # a trap: the samplers must not clip
    "prediction_type": "v_prediction",  # another: `predict_eps` always gives eps
}
SHAPE = (1, 4, 3, 2, 2)
PAIR = (2, *SHAPE[1:])
GENERATOR = torch.Generator().manual_seed(7)
TEXT = torch.randn(2, 5, 6, generator=GENERATOR)
NEGATIVE = torch.randn(1, 5, 6, generator=GENERATOR)


def toy_eps(latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Nonlinear, mixes frames, and treats every video by itself."""
    word = text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1)
    time = timesteps.reshape(-1, 1, 1, 1, 1) / 1000
    return torch.tanh(latents * (0.7 + time) + latents.roll(1, 2) * 0.3 + word) * (1 + word)


def pipeline_loop(scheduler, steps: int, guidance_scale: float) -> torch.Tensor:
    """`TextToVideoSDPipeline.__call__`'s loop, which hands the scheduler single frames."""
    scheduler.set_timesteps(steps)
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    batch, channels, frames, height, width = SHAPE
    for t in scheduler.timesteps:
        eps = toy_eps(torch.cat([latents] * 2), t.repeat(2), torch.cat([NEGATIVE, TEXT[:1]]))
        uncond, cond = eps.chunk(2)
        eps = uncond + guidance_scale * (cond - uncond)
        flat = (batch * frames, channels, height, width)
        eps = eps.permute(0, 2, 1, 3, 4).reshape(flat)
        latents = scheduler.step(eps, t, latents.permute(0, 2, 1, 3, 4).reshape(flat)).prev_sample
        latents = latents.reshape(batch, frames, channels, height, width).permute(0, 2, 1, 3, 4)
    return latents


def betas() -> dict:
    return {k: CONFIG[k] for k in ("beta_start", "beta_end", "beta_schedule")}


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_ddim_equals_the_pipeline(steps, guidance_scale):
    scheduler = DDIMScheduler(
        **betas(), clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"
    )
    ours = sample_ddim(
        toy_eps,
        TEXT[:1],
        SHAPE,
        steps,
        CONFIG,
        negative_text=NEGATIVE,
        guidance_scale=guidance_scale,
        seed=3,
    )
    expected = pipeline_loop(scheduler, steps, guidance_scale)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20])
def test_dpmpp_equals_the_pipeline(steps):
    scheduler = DPMSolverMultistepScheduler(**betas(), timestep_spacing="trailing")
    ours = sample_dpmpp(
        toy_eps, TEXT[:1], SHAPE, steps, CONFIG, negative_text=NEGATIVE, guidance_scale=3.5, seed=3
    )
    torch.testing.assert_close(ours, pipeline_loop(scheduler, steps, 3.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_is_the_consistency_function_and_renoising_in_the_documented_order(steps):
    schedule = VariancePreserving.from_config(CONFIG)
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(SHAPE, generator=generator)
    timesteps = few_step_timesteps(steps)
    for i, t in enumerate(timesteps):
        eps = toy_eps(latents, t.repeat(1), TEXT[:1])
        latents = consistency_function(latents, eps, t.repeat(1), schedule)
        if i + 1 < steps:
            eps = torch.randn(SHAPE, generator=generator)
            latents = schedule.add_noise(latents, eps, timesteps[i + 1].repeat(1))
    ours = sample_lcm(toy_eps, TEXT[:1], SHAPE, steps, CONFIG, seed=11)
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-4)


def test_the_timestep_scaling_reaches_the_lcm_scheduler():
    default = sample_lcm(toy_eps, TEXT, PAIR, 4, CONFIG, seed=0)
    weak = sample_lcm(toy_eps, TEXT, PAIR, 4, CONFIG, seed=0, timestep_scaling=0.001)
    assert (default - weak).abs().max() > 0.01


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_batch_of_two_equals_each_video_alone(name, guidance_scale):
    options = {"negative_text": NEGATIVE, "guidance_scale": guidance_scale}
    pair = SAMPLERS[name](toy_eps, TEXT, PAIR, 4, CONFIG, seed=20, **options)
    for i in range(2):
        text = TEXT[i : i + 1]
        alone = SAMPLERS[name](toy_eps, text, SHAPE, 4, CONFIG, seed=20 + i, **options)
        torch.testing.assert_close(pair[i : i + 1], alone)
    listed = SAMPLERS[name](toy_eps, TEXT, PAIR, 4, CONFIG, seed=[21, 20], **options)
    assert not torch.allclose(listed, pair)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seeds_and_generators_are_two_ways_to_say_the_same(name):
    generators = [torch.Generator().manual_seed(s) for s in (5, 6)]
    a = SAMPLERS[name](toy_eps, TEXT, PAIR, 2, CONFIG, generator=generators)
    assert torch.equal(a, SAMPLERS[name](toy_eps, TEXT, PAIR, 2, CONFIG, seed=5))
    one = torch.Generator().manual_seed(5)
    b = SAMPLERS[name](toy_eps, TEXT, PAIR, 2, CONFIG, generator=one)
    c = SAMPLERS[name](toy_eps, TEXT, PAIR, 2, CONFIG, generator=one)
    assert not torch.allclose(b[0], b[1])
    assert not torch.allclose(b, c)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_global_generator_is_left_alone(name):
    before = torch.random.get_rng_state()
    SAMPLERS[name](toy_eps, TEXT, PAIR, 4, CONFIG, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_init_latents_replace_the_first_noise(name):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    given = SAMPLERS[name](toy_eps, TEXT[:1], SHAPE, 1, CONFIG, seed=1, init_latents=noise)
    assert torch.equal(given, SAMPLERS[name](toy_eps, TEXT[:1], SHAPE, 1, CONFIG, seed=9))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_reported(name):
    told = []
    clip = SAMPLERS[name](toy_eps, TEXT, PAIR, 4, CONFIG, seed=0, on_step=told.append)
    assert [step.index for step in told] == [0, 1, 2, 3]
    assert {step.steps for step in told} == {4}
    assert told[0].timestep == 999
    assert torch.equal(told[-1].latents, clip)
    assert told[0].x0.shape == PAIR
    schedule = VariancePreserving.from_config(CONFIG)
    first = torch.cat(
        [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    )
    t = torch.tensor([999, 999])
    x0 = schedule.x0_from_eps(first, toy_eps(first, t, TEXT), t)
    torch.testing.assert_close(told[0].x0, x0, rtol=1e-4, atol=1e-4)


def test_an_exception_in_the_callback_stops_the_run():
    calls = []

    def stop(step):
        calls.append(step.index)
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        sample_ddim(toy_eps, TEXT, PAIR, 8, CONFIG, seed=0, on_step=stop)
    assert calls == [0]


def test_guidance_uses_one_batch_with_the_prompts_first():
    seen = []

    def spy(latents, timesteps, text):
        seen.append((latents, timesteps, text))
        return toy_eps(latents, timesteps, text)

    sample_ddim(spy, TEXT, PAIR, 1, CONFIG, negative_text=NEGATIVE, guidance_scale=2.0, seed=0)
    [(latents, timesteps, text)] = seen
    assert torch.equal(latents[:2], latents[2:])
    assert timesteps.tolist() == [999] * 4
    assert torch.equal(text, torch.cat([TEXT, NEGATIVE, NEGATIVE]))


def test_a_half_precision_model_and_gradients_stay_out_of_the_result():
    weight = torch.ones((), requires_grad=True)

    def half(latents, timesteps, text):
        return (toy_eps(latents, timesteps, text) * weight).bfloat16()

    clip = sample_lcm(half, TEXT, PAIR, 2, CONFIG, seed=0)
    assert clip.dtype == torch.float32
    assert not clip.requires_grad


@pytest.mark.parametrize(
    ("name", "steps", "most"), [("lcm", 51, 50), ("ddim", 1001, 1000), ("dpmpp", 0, 1000)]
)
def test_an_impossible_number_of_steps_is_refused(name, steps, most):
    with pytest.raises(ValueError, match=f"`steps`={steps} .* use 1 to {most}"):
        SAMPLERS[name](toy_eps, TEXT, PAIR, steps, CONFIG, seed=0)


def test_a_step_count_that_diffusers_rounds_wrongly_is_refused():
    with pytest.raises(ValueError, match="`steps`=61 gives 62 timesteps in diffusers.* use 60"):
        sample_ddim(toy_eps, TEXT, PAIR, 61, CONFIG, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 4, 2, 2)}, "not a shape of video latents"),
        ({"shape": (3, *SHAPE[1:])}, "`text` has shape"),
        ({"seed": None}, "exactly one of `seed` and `generator`"),
        ({"generator": torch.Generator()}, "exactly one of `seed` and `generator`"),
        ({"seed": [1, 2, 3]}, "got 3 seeds for 2 videos"),
        ({"guidance_scale": 2.0}, "needs `negative_text`"),
        ({"guidance_scale": 2.0, "negative_text": torch.zeros(3, 5, 6)}, "needs `negative_text`"),
        ({"init_latents": torch.zeros(SHAPE)}, "`init_latents` has shape"),
        ({"schedule_config": {**CONFIG, "rescale_betas_zero_snr": True}}, "holds no signal"),
        ({"schedule_config": {}}, "scheduler config lacks"),
    ],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_unfit_arguments_are_refused(name, changes, message):
    arguments = {"shape": PAIR, "steps": 2, "schedule_config": CONFIG, "seed": 0, **changes}
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name](toy_eps, TEXT, **arguments)


def test_lcm_ends_in_the_consistency_function_of_its_own_constants():
    """One step from noise is ``f(noise, 999)`` of whatever the student was distilled with."""
    from trainer.diffusion.noise import consistency_function

    noise = torch.randn(PAIR, generator=torch.Generator().manual_seed(3))
    schedule, last = VariancePreserving.from_config(CONFIG), torch.tensor([999, 999])
    eps = toy_eps(noise, last, TEXT)
    for scaling, spread in ((4.0, 0.5), (0.1, 10.0)):
        wanted = consistency_function(noise, eps, last, schedule, scaling, spread)
        found = sample_lcm(
            toy_eps, TEXT, PAIR, 1, CONFIG, seed=0, init_latents=noise,
            timestep_scaling=scaling, sigma_data=spread,
        )  # fmt: skip
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
