"""The samplers equal pipeline-style loops over diffusers' schedulers, clip by clip."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
)

from trainer.diffusion.noise import (
    RectifiedFlow,
    VariancePreserving,
    boundary_scalings,
)
from trainer.diffusion.sampling import SAMPLERS, sample_lcm, sample_ode

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIG = {
    **BETAS,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "clip_sample": True,  # a trap: the samplers must not clip
}
PREDICTIONS = ("epsilon", "v_prediction")
EPS, VELOCITY = (
    VariancePreserving.from_config(CONFIG | {"prediction_type": p}) for p in PREDICTIONS
)
FLOW = RectifiedFlow(shift=5.0)
PATHS = {"epsilon": EPS, "v_prediction": VELOCITY, "flow": FLOW}
SHAPE = (1, 4, 3, 2, 2)
PAIR = (2, *SHAPE[1:])
GENERATOR = torch.Generator().manual_seed(7)
TEXT = torch.randn(2, 5, 6, generator=GENERATOR)
NEGATIVE = torch.randn(1, 5, 6, generator=GENERATOR)
NEAR = {"rtol": 1e-4, "atol": 1e-4}


def toy(latents: torch.Tensor, level: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Nonlinear, mixes frames, and treats every video by itself."""
    word = text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1)
    time = (level if level.is_floating_point() else level / 1000).reshape(-1, 1, 1, 1, 1)
    return torch.tanh(latents * (0.7 + time) + latents.roll(1, 2) * 0.3 + word) * (1 + word)


def pipeline_loop(scheduler, steps: int, guidance_scale: float, generator=None, levels=None):
    """`TextToVideoSDPipeline.__call__`'s loop, which hands the scheduler single frames; clips go
    whole to one that draws noise, as the samplers draw it.
    """
    if levels is None:
        scheduler.set_timesteps(steps)
        levels = scheduler.timesteps
    latents = torch.randn(SHAPE, generator=generator or torch.Generator().manual_seed(3))
    batch, channels, frames, height, width = SHAPE
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        both = torch.cat([NEGATIVE, TEXT[:1]])
        uncond, cond = toy(torch.cat([latents] * 2), level.repeat(2), both).chunk(2)
        output = uncond + guidance_scale * (cond - uncond)
        if generator is not None:
            latents = scheduler.step(output, t, latents, generator=generator).prev_sample
            continue
        flat = (batch * frames, channels, height, width)
        output, rows = (x.permute(0, 2, 1, 3, 4).reshape(flat) for x in (output, latents))
        latents = scheduler.step(output, t, rows).prev_sample
        latents = latents.reshape(batch, frames, channels, height, width).permute(0, 2, 1, 3, 4)
    return latents


def sampled(sampler, path, steps, guidance_scale, seed=3, **options):
    return sampler(
        toy, path, TEXT[:1], SHAPE, steps,
        negative_text=NEGATIVE, guidance_scale=guidance_scale, seed=seed, **options,
    )  # fmt: skip


def even_sigmas(steps: int) -> list[float]:
    return [(steps - i) / steps for i in range(steps)]


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_order_1_is_ddim_of_the_pipeline(steps, guidance_scale, prediction, set_alpha_to_one):
    told = {"prediction_type": prediction, "set_alpha_to_one": set_alpha_to_one}
    scheduler = DDIMScheduler(**BETAS, **told, clip_sample=False, timestep_spacing="trailing")
    path = VariancePreserving.from_config(CONFIG | told)
    expected = pipeline_loop(scheduler, steps, guidance_scale)
    torch.testing.assert_close(sampled(sample_ode, path, steps, guidance_scale), expected, **NEAR)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50])
def test_order_2_is_dpm_solver_of_the_pipeline(steps, prediction, set_alpha_to_one):
    """It ends at a clean clip, whatever the base model's config says of DDIM's end."""
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing="trailing"
    )
    told = {"prediction_type": prediction, "set_alpha_to_one": set_alpha_to_one}
    found = sampled(sample_ode, VariancePreserving.from_config(CONFIG | told), steps, 3.5, order=2)
    torch.testing.assert_close(found, pipeline_loop(scheduler, steps, 3.5), **NEAR)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_order_1_on_a_flow_is_euler_of_diffusers(steps, guidance_scale, shift):
    scheduler, path = FlowMatchEulerDiscreteScheduler(shift=shift), RectifiedFlow(shift)
    scheduler.set_timesteps(sigmas=even_sigmas(steps))
    expected = pipeline_loop(scheduler, steps, guidance_scale, levels=scheduler.sigmas[:-1])
    torch.testing.assert_close(sampled(sample_ode, path, steps, guidance_scale), expected, **NEAR)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50])
def test_order_2_on_a_flow_is_dpm_solver_of_diffusers(steps):
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    )
    scheduler.set_timesteps(steps)
    levels = FLOW.levels(steps).flip(0)  # its own begin at 0.999
    scheduler.sigmas = torch.cat([levels, torch.zeros(1)])
    scheduler.timesteps = 1000 * levels
    found = sampled(sample_ode, FLOW, steps, 3.5, order=2)
    torch.testing.assert_close(found, pipeline_loop(scheduler, steps, 3.5, levels=levels), **NEAR)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_is_the_lcm_scheduler(steps, guidance_scale, prediction):
    scheduler = LCMScheduler(**BETAS, prediction_type=prediction, timestep_scaling=4.0)
    expected = pipeline_loop(scheduler, steps, guidance_scale, torch.Generator().manual_seed(3))
    found = sampled(sample_lcm, PATHS[prediction], steps, guidance_scale)
    torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_of_another_number_of_levels_is_the_lcm_scheduler(steps):
    scheduler = LCMScheduler(**BETAS, timestep_scaling=10.0, original_inference_steps=100)
    expected = pipeline_loop(scheduler, steps, 1.0, torch.Generator().manual_seed(3))
    found = sampled(sample_lcm, EPS, steps, 1.0, original_steps=100, timestep_scaling=10.0)
    torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_on_a_flow_is_the_flow_lcm_scheduler(steps, guidance_scale):
    scheduler = FlowMatchLCMScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    generator, levels = torch.Generator().manual_seed(3), scheduler.sigmas[:-1]
    expected = pipeline_loop(scheduler, steps, guidance_scale, generator, levels)
    torch.testing.assert_close(sampled(sample_lcm, FLOW, steps, guidance_scale), expected, **NEAR)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_is_the_consistency_function_and_renoising_in_the_documented_order(steps, path):
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(SHAPE, generator=generator)
    levels = path.few_steps(steps, 50)
    for i, t in enumerate(levels):
        output = toy(latents, t.repeat(1), TEXT[:1])
        latents = path.consistency(latents, path.read(latents, output, t).x0, t)
        if i + 1 < steps:
            eps = torch.randn(SHAPE, generator=generator)
            latents = path.add_noise(latents, eps, levels[i + 1])
    ours = sample_lcm(toy, path, TEXT[:1], SHAPE, steps, seed=11)
    torch.testing.assert_close(ours, latents, **NEAR)


def test_lcm_takes_the_constants_of_its_arguments():
    default = sample_lcm(toy, EPS, TEXT, PAIR, 4, seed=0)
    for options in ({"timestep_scaling": 0.001}, {"sigma_data": 2000.0}):
        assert (default - sample_lcm(toy, EPS, TEXT, PAIR, 4, seed=0, **options)).abs().max() > 0.01
        bounded = EPS.bounded(0.3, 0.2)
        assert torch.equal(default, sample_lcm(toy, bounded, TEXT, PAIR, 4, seed=0)), "not its own"


def test_lcm_ends_in_the_consistency_function_of_its_own_constants():
    """One step from noise is ``f(noise, 999)`` of whatever the student was distilled with."""
    noise = torch.randn(PAIR, generator=torch.Generator().manual_seed(3))
    last = torch.tensor([999, 999])
    x0 = EPS.read(noise, toy(noise, last, TEXT), last).x0
    for scaling, spread in ((4.0, 0.5), (0.1, 10.0)):
        c_skip, c_out = (float(c[0]) for c in boundary_scalings(last, scaling, spread))
        found = sample_lcm(
            toy, EPS, TEXT, PAIR, 1, seed=0, init_latents=noise,
            timestep_scaling=scaling, sigma_data=spread,
        )  # fmt: skip
        assert torch.allclose(found, c_skip * noise + c_out * x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 4, 50, 61])
def test_a_model_that_knows_the_clip_arrives_at_it(name, path, steps):
    """In any number of steps, such as 61, which diffusers' schedulers make 62 timesteps of."""
    clip, told = torch.randn(PAIR, generator=torch.Generator().manual_seed(4)), []
    if isinstance(path, VariancePreserving):
        path = VariancePreserving.from_config(
            CONFIG | {"set_alpha_to_one": True, "prediction_type": path.prediction}
        )

    def knows(latents, level, text):
        alpha, sigma = path.alpha_sigma(level, 5)
        eps = (latents - alpha * clip) / sigma
        kinds = {"epsilon": eps, "v_prediction": alpha * eps - sigma * clip, "velocity": eps - clip}
        return kinds[path.prediction]

    options = {"original_steps": 100} if name == "lcm" else {}
    found = SAMPLERS[name](knows, path, TEXT, PAIR, steps, seed=0, on_step=told.append, **options)
    torch.testing.assert_close(found, clip, rtol=2e-3, atol=2e-3)
    levels = [step.level for step in told]
    assert len(levels) == steps and levels[0] == float(path.levels(1))
    assert levels == sorted(set(levels), reverse=True) and levels[-1] >= 0


@pytest.mark.parametrize("order", [1, 2])
def test_61_steps_make_the_clip_of_60(order):
    """Not that of the 62 timesteps, the last of them the noisiest, of diffusers' rounding."""
    wanted, found = (sampled(sample_ode, EPS, steps, 1.0, order=order) for steps in (60, 61))
    assert (found - wanted).abs().max() < 0.01 * wanted.abs().max()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_batch_of_two_equals_each_video_alone(name, guidance_scale, path):
    options = {"negative_text": NEGATIVE, "guidance_scale": guidance_scale}
    pair = SAMPLERS[name](toy, path, TEXT, PAIR, 4, seed=20, **options)
    for i in range(2):
        text = TEXT[i : i + 1]
        alone = SAMPLERS[name](toy, path, text, SHAPE, 4, seed=20 + i, **options)
        torch.testing.assert_close(pair[i : i + 1], alone)
    listed = SAMPLERS[name](toy, path, TEXT, PAIR, 4, seed=[21, 20], **options)
    assert not torch.allclose(listed, pair)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seeds_and_generators_are_two_ways_to_say_the_same(name):
    generators = [torch.Generator().manual_seed(s) for s in (5, 6)]
    a = SAMPLERS[name](toy, EPS, TEXT, PAIR, 2, generator=generators)
    assert torch.equal(a, SAMPLERS[name](toy, EPS, TEXT, PAIR, 2, seed=5))
    one = torch.Generator().manual_seed(5)
    b = SAMPLERS[name](toy, EPS, TEXT, PAIR, 2, generator=one)
    c = SAMPLERS[name](toy, EPS, TEXT, PAIR, 2, generator=one)
    assert not torch.allclose(b[0], b[1])
    assert not torch.allclose(b, c)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_global_generator_is_left_alone(name):
    before = torch.random.get_rng_state()
    SAMPLERS[name](toy, EPS, TEXT, PAIR, 4, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_init_latents_replace_the_first_noise(name, path):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    given = SAMPLERS[name](toy, path, TEXT[:1], SHAPE, 1, seed=1, init_latents=noise)
    assert torch.equal(given, SAMPLERS[name](toy, path, TEXT[:1], SHAPE, 1, seed=9))


@pytest.mark.parametrize(("path", "most"), [(EPS, 999), (VELOCITY, 999), (FLOW, 1)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_reported(name, path, most):
    told = []
    clip = SAMPLERS[name](toy, path, TEXT, PAIR, 4, seed=0, on_step=told.append)
    assert [step.index for step in told] == [0, 1, 2, 3]
    assert {step.steps for step in told} == {4}
    assert told[0].level == most
    assert torch.equal(told[-1].latents, clip)
    assert told[0].x0.shape == PAIR
    first = torch.cat(
        [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    )
    t = torch.tensor([most, most], dtype=path.levels(1).dtype)
    x0 = path.read(first, toy(first, t, TEXT), t).x0
    torch.testing.assert_close(told[0].x0, x0, **NEAR)


def test_an_exception_in_the_callback_stops_the_run():
    calls = []

    def stop(step):
        calls.append(step.index)
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        sample_ode(toy, EPS, TEXT, PAIR, 8, seed=0, on_step=stop)
    assert calls == [0]


@pytest.mark.parametrize(("path", "most"), [(EPS, 999), (FLOW, 1)])
def test_guidance_uses_one_batch_with_the_prompts_first(path, most):
    seen = []

    def spy(latents, level, text):
        seen.append((latents, level, text))
        return toy(latents, level, text)

    sample_ode(spy, path, TEXT, PAIR, 1, negative_text=NEGATIVE, guidance_scale=2.0, seed=0)
    [(latents, level, text)] = seen
    assert torch.equal(latents[:2], latents[2:])
    assert level.tolist() == [most] * 4
    assert level.dtype == path.levels(1).dtype
    assert torch.equal(text, torch.cat([TEXT, NEGATIVE, NEGATIVE]))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_half_precision_model_and_gradients_stay_out_of_the_result(name, path):
    weight = torch.ones((), requires_grad=True)

    def half(latents, level, text):
        return (toy(latents, level, text) * weight).bfloat16()

    clip = SAMPLERS[name](half, path, TEXT, PAIR, 2, seed=0)
    assert clip.dtype == torch.float32
    assert not clip.requires_grad


@pytest.mark.parametrize(
    ("path", "name", "steps", "most"),
    [
        (EPS, "lcm", 51, 50), (EPS, "ddim", 1001, 1000), (EPS, "dpmpp", 0, 1000),
        (FLOW, "lcm", 1001, 1000), (FLOW, "ddim", 1001, 1000), (FLOW, "dpmpp", 0, 1000),
    ],
)  # fmt: skip
def test_an_impossible_number_of_steps_is_refused(name, steps, most, path):
    with pytest.raises(ValueError, match=f"`steps`={steps} .* use 1 to {most}"):
        SAMPLERS[name](toy, path, TEXT, PAIR, steps, seed=0)


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
    ],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_unfit_arguments_are_refused(name, changes, message):
    arguments = {"shape": PAIR, "steps": 2, "seed": 0, **changes}
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name](toy, EPS, TEXT, **arguments)
