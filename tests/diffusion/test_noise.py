"""Noise levels agree with diffusers, and readings undo the mixing of clip and noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from trainer.diffusion.noise import RectifiedFlow, VariancePreserving, few_step_places, guided

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
VELOCITY = {"prediction_type": "v_prediction"}
TIMESTEPS = torch.tensor([19, 499, 999])
TIMES = torch.tensor([0.02, 0.5, 1.0])
PATHS = {
    "modelscope": (VariancePreserving.from_config(MODELSCOPE), TIMESTEPS),
    "animatediff": (VariancePreserving.from_config(ANIMATEDIFF), TIMESTEPS),
    "velocity": (VariancePreserving.from_config(MODELSCOPE | VELOCITY), TIMESTEPS),
    "flow": (RectifiedFlow(), TIMES),
    "shifted flow": (RectifiedFlow(shift=5.0), TIMES),
}
NEAR = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param][0]


@pytest.fixture
def levels(path):
    """Of three videos."""
    return TIMES if isinstance(path, RectifiedFlow) else TIMESTEPS


def noise(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 2, 2, 3, generator=generator, dtype=dtype)


def true_output(path, x0, eps, levels):
    """What a network that knows the clip answers, by the definitions in the papers."""
    alpha, sigma = path.alpha_sigma(levels, x0.ndim, torch.float64)
    outputs = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "velocity": eps - x0}
    return outputs[path.prediction]


@pytest.mark.parametrize("config", [MODELSCOPE, ANIMATEDIFF])
@pytest.mark.parametrize("rescale", [False, True])
def test_table_is_that_of_diffusers(config, rescale):
    config = {**config, "rescale_betas_zero_snr": rescale}
    path, expected = VariancePreserving.from_config(config), DDIMScheduler.from_config(config)
    assert torch.equal(path.alphas_cumprod, expected.alphas_cumprod)
    assert path.alphas_cumprod.shape == (1000,)
    assert path.alphas_cumprod.dtype == torch.float32
    assert path.final_alpha_cumprod == float(expected.final_alpha_cumprod)


def test_linear_and_scaled_linear_betas_differ():
    a, b = (VariancePreserving.from_config(c).alphas_cumprod for c in (MODELSCOPE, ANIMATEDIFF))
    assert (a - b).abs().max() > 0.05


def test_trained_betas_are_used():
    path = VariancePreserving.from_config({"trained_betas": [0.5, 0.5]})
    assert path.alphas_cumprod.tolist() == [0.5, 0.25]
    assert path.levels(1).tolist() == [1]


def test_resolved_config_builds_the_same_path():
    path = VariancePreserving.from_config(ANIMATEDIFF)
    again = VariancePreserving.from_config(path.config)
    assert torch.equal(path.alphas_cumprod, again.alphas_cumprod)
    assert again.config == path.config


def test_a_flow_is_built_again_from_its_config():
    assert RectifiedFlow(**RectifiedFlow(shift=3.0).config) == RectifiedFlow(shift=3.0)
    assert RectifiedFlow().config == {"shift": 1.0}


@pytest.mark.parametrize("key", ["beta_start", "beta_end", "beta_schedule"])
def test_a_config_without_betas_is_refused(key):
    config = {k: v for k, v in MODELSCOPE.items() if k != key}
    with pytest.raises(ValueError, match=f"lacks \\['{key}'\\]"):
        VariancePreserving.from_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "sine"}, "`beta_schedule`='sine' is not supported"),
        ({"prediction_type": "sample"}, "`prediction_type`='sample'.*must predict epsilon or v_"),
    ],
)
def test_what_diffusers_or_a_reading_does_not_know_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VariancePreserving.from_config({**MODELSCOPE, **changes})


def test_a_half_precision_table_is_refused():
    with pytest.raises(ValueError, match="one-dimensional float32"):
        VariancePreserving(torch.ones(10, dtype=torch.float16))


def test_levels_are_those_of_lcm():
    path = VariancePreserving.from_config(MODELSCOPE)
    assert path.levels(50).dtype == torch.long
    assert path.levels(50).tolist() == list(range(19, 1000, 20))
    assert path.levels(4).tolist() == [249, 499, 749, 999]


def test_levels_of_every_count_are_diffusers_trailing_timesteps():
    """Halves may be rounded either way. Where diffusers' float range is one too long, as for 61,
    its last timestep is -1, which is no level of the path.
    """
    path = VariancePreserving.from_config(MODELSCOPE)
    scheduler = DDIMScheduler.from_config(MODELSCOPE, timestep_spacing="trailing")
    longer = []
    for count in range(1, 1001):
        scheduler.set_timesteps(count)
        expected = scheduler.timesteps.tolist()
        if len(expected) > count:
            longer.append(count)
            assert expected.pop() == -1
        pairs = zip(path.levels(count).tolist(), reversed(expected), strict=True)
        for place, (found, theirs) in enumerate(pairs, start=1):
            half = 2 * (place * 1000 % count) == count
            assert found == theirs or half and abs(found - theirs) == 1, (count, place)
    assert longer[0] == 61


def test_levels_of_a_flow_are_moved_towards_noise_by_its_shift():
    assert RectifiedFlow().levels(4).tolist() == [0.25, 0.5, 0.75, 1.0]
    descending = torch.tensor([1.0, 0.9375, 0.8333333, 0.625])
    found = RectifiedFlow(shift=5.0).levels(4)
    torch.testing.assert_close(found.flip(0), descending)
    torch.testing.assert_close(found[few_step_places(4, 4)], descending)
    for count in (1, 2, 7, 50):
        assert RectifiedFlow(shift=5.0).levels(count)[-1] == 1, "pure noise, exactly"


@pytest.mark.parametrize("count", [1, 4, 30, 50])
def test_levels_of_a_flow_are_those_of_diffusers(count):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[(count - i) / count for i in range(count)])
    path = RectifiedFlow(shift=5.0)
    torch.testing.assert_close(path.levels(count).flip(0), scheduler.sigmas[:-1])
    torch.testing.assert_close(path.model_time(path.levels(count).flip(0)), scheduler.timesteps)
    assert scheduler.sigmas[-1] == path.end


def test_few_steps_of_a_flow_are_those_of_comfyuis_scheduler_simple():
    """Its numbers for ModelSamplingSD3 at shift 5, printed by ComfyUI 0.33.0."""
    simple = {
        1: [1.0],
        2: [1.0, 0.833333],
        3: [1.0, 0.909215, 0.714897],
        4: [1.0, 0.9375, 0.833333, 0.625],
        5: [1.0, 0.952381, 0.882353, 0.769231, 0.555556],
        6: [1.0, 0.961716, 0.909215, 0.833333, 0.714897, 0.5006],
        7: [1.0, 0.96796, 0.926166, 0.86983, 0.789764, 0.666978, 0.454835],
        8: [1.0, 0.972222, 0.9375, 0.892857, 0.833333, 0.75, 0.625, 0.416667],
    }
    path = RectifiedFlow(shift=5.0)
    for steps, wanted in simple.items():
        for places in (48, 50):
            found = path.few_steps(steps, places)
            torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", [{}, VELOCITY], ids=["epsilon", "velocity"])
def test_steadiness_is_what_an_error_of_the_output_makes_of_the_clip(prediction):
    z, output, off = noise(0), noise(1), 1e-3 * noise(2)
    kinds = ((VariancePreserving.from_config(MODELSCOPE | prediction), TIMESTEPS),
             (RectifiedFlow(shift=5.0), TIMES))  # fmt: skip
    for path, level in kinds:
        moved = path.read(z, output + off, level).x0 - path.read(z, output, level).x0
        torch.testing.assert_close(moved.abs() * path.steadiness(level, 5), off.abs())


def test_a_count_that_is_not_possible_is_refused():
    for count in (0, 1001):
        with pytest.raises(ValueError, match=f"`count`={count} noise levels; use 1 to 1000"):
            VariancePreserving.from_config(MODELSCOPE).levels(count)
    with pytest.raises(ValueError, match="`count`=0 noise levels; use 1 or more"):
        RectifiedFlow().levels(0)


def test_shares_of_the_way_and_what_the_network_is_called_with():
    path, flow = VariancePreserving.from_config(MODELSCOPE), RectifiedFlow(shift=5.0)
    torch.testing.assert_close(path.share(TIMESTEPS), torch.tensor([0.019, 0.499, 0.999]))
    assert torch.equal(path.model_time(TIMESTEPS), TIMESTEPS)
    shifted = flow.levels(48)[[5, 23, 47]]
    torch.testing.assert_close(flow.share(shifted), torch.tensor([0.125, 0.5, 1.0]))
    torch.testing.assert_close(flow.model_time(TIMES), torch.tensor([20.0, 500.0, 1000.0]))


def test_add_noise_and_velocity_are_those_of_diffusers():
    path = VariancePreserving.from_config(MODELSCOPE | VELOCITY)
    scheduler = DDIMScheduler.from_config(MODELSCOPE)
    x0, eps = noise(0), noise(1)
    z = path.add_noise(x0, eps, TIMESTEPS)
    torch.testing.assert_close(z, scheduler.add_noise(x0, eps, TIMESTEPS))
    v = scheduler.get_velocity(x0, eps, TIMESTEPS)
    torch.testing.assert_close(v, true_output(path, x0, eps, TIMESTEPS))
    read = path.read(z, v, TIMESTEPS)
    torch.testing.assert_close(read.x0, x0)
    torch.testing.assert_close(read.eps, eps)


def test_noise_on_a_flow_is_that_of_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    times = scheduler.sigmas[[100, 500, 900]]
    expected = scheduler.scale_noise(noise(0), scheduler.timesteps[[100, 500, 900]], noise(1))
    torch.testing.assert_close(RectifiedFlow(5.0).add_noise(noise(0), noise(1), times), expected)


def test_a_reading_undoes_the_mixing_in_float64(path, levels):
    x0, eps = noise(0), noise(1)
    read = path.read(path.add_noise(x0, eps, levels), true_output(path, x0, eps, levels), levels)
    torch.testing.assert_close(read.x0, x0, **NEAR)
    torch.testing.assert_close(read.eps, eps, **NEAR)


def test_mixing_undoes_a_reading_of_any_output(path, levels):
    """Clip and noise that are read from a point are always two that make this point."""
    z = noise(0)
    torch.testing.assert_close(path.add_noise(*path.read(z, noise(1), levels), levels), z, **NEAR)


def test_a_step_with_the_true_output_stays_on_the_straight_trajectory(path, levels):
    x0, eps, lower = noise(0), noise(1), path.levels(50)[[0, 3, 20]]
    z = path.add_noise(x0, eps, levels)
    read = path.read(z, true_output(path, x0, eps, levels), levels)
    torch.testing.assert_close(
        path.add_noise(*read, lower), path.add_noise(x0, eps, lower), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_is_diffusers_ddim_step(prediction, set_alpha_to_one):
    config = {**MODELSCOPE, "set_alpha_to_one": set_alpha_to_one, "prediction_type": prediction}
    path = VariancePreserving.from_config(config)
    scheduler = DDIMScheduler.from_config(config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(50)
    for t, following in ((999, 979), (19, -1)):
        expected = scheduler.step(noise(0), t, noise(1)).prev_sample
        read = path.read(noise(1), noise(0), torch.tensor(t))
        found = path.add_noise(*read, torch.tensor(following))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_step_on_a_flow_is_diffusers_euler_step():
    path, scheduler = RectifiedFlow(shift=5.0), FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    z, levels = noise(0, torch.float32), path.levels(4).flip(0).tolist()
    for index, (level, following) in enumerate(zip(levels, [*levels[1:], path.end], strict=True)):
        output = noise(1 + index, torch.float32)
        expected = scheduler.step(output, scheduler.timesteps[index], z).prev_sample
        z = path.add_noise(*path.read(z, output, torch.tensor(level)), torch.tensor(following))
        torch.testing.assert_close(z, expected)


def test_every_video_of_a_batch_has_its_own_level(path, levels):
    x0, eps = noise(0), noise(1)
    together, read = path.add_noise(x0, eps, levels), path.read(x0, eps, levels)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], path.add_noise(x0[one], eps[one], levels[one]))
        alone = path.read(x0[one], eps[one], levels[one])
        assert torch.equal(read.x0[one], alone.x0) and torch.equal(read.eps[one], alone.eps)
    assert torch.equal(path.add_noise(x0, eps, levels[0])[0], together[0])


def test_the_end_of_a_sampling_run_is_clean():
    t = torch.tensor([-1, 0, -1])
    clean = VariancePreserving.from_config(ANIMATEDIFF).add_noise(noise(0), noise(1), t)
    assert torch.equal(clean[0], noise(0)[0])
    assert not torch.equal(clean[1], noise(0)[1])
    path = VariancePreserving.from_config(MODELSCOPE)  # set_alpha_to_one: false
    alpha, _ = path.alpha_sigma(t, 5)
    assert alpha.shape == (3, 1, 1, 1, 1)
    assert alpha[0] == alpha[1] == path.alphas_cumprod[0].sqrt()
    assert (VariancePreserving.end, RectifiedFlow.end) == (-1, 0)
    assert torch.equal(RectifiedFlow().add_noise(noise(0), noise(1), torch.zeros(3)), noise(0))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_float32(half, path, levels):
    x0, eps = noise(0, torch.float32).to(half), noise(1, torch.float32).to(half)
    z = path.add_noise(x0, eps, levels)
    assert z.dtype == torch.float32
    assert torch.equal(z, path.add_noise(x0.float(), eps.float(), levels))
    read, whole = (path.read(a, b, levels) for a, b in ((x0, eps), (x0.float(), eps.float())))
    assert read.x0.dtype == read.eps.dtype == torch.float32
    assert torch.equal(read.x0, whole.x0) and torch.equal(read.eps, whole.eps)


def test_to_moves_the_table_and_keeps_the_rest():
    path = VariancePreserving.from_config(MODELSCOPE | VELOCITY).bounded(2.0, 0.25)
    moved = path.to("meta")
    assert moved.alphas_cumprod.device.type == "meta"
    assert path.alphas_cumprod.device.type == "cpu"
    for name in ("config", "final_alpha_cumprod", "prediction", "timestep_scaling", "sigma_data"):
        assert getattr(moved, name) == getattr(path, name)
    assert RectifiedFlow(5.0).to("meta") == RectifiedFlow(5.0)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), "must be integer timesteps"),
        (torch.zeros(3, 1, dtype=torch.long), "must be integer timesteps"),
        (torch.tensor([1, 2]), "2 values for a batch of 3"),
    ],
)
def test_unfit_timesteps_are_refused(t, message):
    with pytest.raises(ValueError, match=message):
        VariancePreserving.from_config(MODELSCOPE).add_noise(noise(0), noise(1), t)


def test_unfit_times_of_a_flow_are_refused():
    with pytest.raises(ValueError, match="2 values for a batch of 3; give one level per video"):
        RectifiedFlow().add_noise(noise(0), noise(1), torch.tensor([0.1, 0.2]))


def test_noise_or_an_output_of_another_shape_is_refused(path, levels):
    for call in (path.add_noise, path.read):
        with pytest.raises(ValueError, match="must have one shape"):
            call(noise(0), noise(1)[:1], levels)


def test_guidance_is_the_usual_one_with_a_scale_of_w_plus_one():
    cond, uncond = noise(0), noise(1)
    torch.testing.assert_close(guided(cond, uncond, 6.5), uncond + 7.5 * (cond - uncond))
    assert torch.equal(guided(cond, uncond, 0.0), cond)


def test_guidance_takes_one_weight_a_video():
    cond, uncond = noise(0), noise(1)
    each = guided(cond, uncond, torch.tensor([1.0, 3.0, 0.0]))
    for i, w in enumerate((1.0, 3.0, 0.0)):
        torch.testing.assert_close(each[i], guided(cond[i], uncond[i], w))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_guiding_outputs_is_guiding_their_readings(prediction):
    """So it does not matter that the samplers guide before they read."""
    config = MODELSCOPE | {"prediction_type": prediction}
    path, z = VariancePreserving.from_config(config), noise(2)
    cond, uncond = (path.read(z, noise(seed), TIMESTEPS) for seed in (0, 1))
    both = path.read(z, guided(noise(0), noise(1), 6.5), TIMESTEPS)
    torch.testing.assert_close(both.x0, guided(cond.x0, uncond.x0, 6.5), **NEAR)
    torch.testing.assert_close(both.eps, guided(cond.eps, uncond.eps, 6.5), **NEAR)


def test_few_steps_are_taken_where_the_lcm_scheduler_takes_them():
    levels = VariancePreserving.from_config(MODELSCOPE).levels(50)
    assert levels[few_step_places(1)].tolist() == [999]
    assert levels[few_step_places(2)].tolist() == [999, 499]
    assert levels[few_step_places(4)].tolist() == [999, 759, 499, 259]
    assert levels[few_step_places(8)].tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    scheduler = LCMScheduler(**{k: MODELSCOPE[k] for k in ("beta_start", "beta_end")})
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert levels[few_step_places(steps)].tolist() == scheduler.timesteps.tolist()
    assert few_step_places(50).tolist() == list(range(49, -1, -1))
    assert few_step_places(2, count=10).tolist() == [9, 4]
    assert few_step_places(4).dtype == torch.long


@pytest.mark.parametrize("steps", [0, 51, -1, 2.0, True])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match="is not a number of sampling steps; use 1 to 50"):
        few_step_places(steps)
