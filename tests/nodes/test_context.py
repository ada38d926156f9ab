"""Clips longer than the model: windows cover every frame, and shorter clips are not touched."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

LENGTH, SIDE, SEED = 8, 4, 5
SCHEDULES = ("standard_uniform", "standard_static", "looped_uniform")


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def base(native, tiny_model):
    loaded = native("model").load_native_model(tiny_model, "fp32")
    return native("sampling").apply_model_sampling(loaded)


def texts(rows=1):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, 77, 64, generator=generator), torch.zeros(1, 77, 64)


def sample(model, frames, sampler="lcm", steps=3, cfg=2.0, prompt=None, noise=None):
    """Latents (frames, 4, h, w) of core's KSampler, scheduler simple."""
    import comfy.sample

    latent = torch.zeros(frames, 4, SIDE, SIDE)
    noise = comfy.sample.prepare_noise(latent, SEED) if noise is None else noise
    prompt, negative = texts() if prompt is None else (prompt, texts()[1])
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            "simple",
            [[prompt, {}]],
            [[negative, {}]],
            latent,
            seed=SEED,
            disable_pbar=True,
        ).clone()


def near(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fuse", ["pyramid", "flat"])
def test_a_long_clip_is_sampled(native, base, schedule, fuse):
    model = native("context").add_context_windows(base, LENGTH, 2, schedule, True, fuse)
    assert torch.isfinite(sample(model, 19)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_clip_that_is_not_longer_is_that_of_the_plain_model(native, base, schedule):
    model = native("context").add_context_windows(base, LENGTH, 2, schedule)
    assert torch.equal(sample(model, LENGTH), sample(base, LENGTH))


def test_separate_windows_are_separate_clips(native, base):
    """Without overlap the two halves of a clip know nothing of each other."""
    import comfy.sample

    model = native("context").add_context_windows(base, LENGTH, 0, "standard_static")
    noise = comfy.sample.prepare_noise(torch.zeros(2 * LENGTH, 4, SIDE, SIDE), SEED)
    long = sample(model, 2 * LENGTH, "euler", noise=noise)
    for half in (slice(0, LENGTH), slice(LENGTH, None)):
        assert near(long[half], sample(base, LENGTH, "euler", noise=noise[half]))


def test_a_step_is_the_weighted_mean_of_its_windows(native, base):
    """One step over 12 frames: windows 0-7 and 4-11, blended with the weights 1 2 3 4 4 3 2 1."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(torch.zeros(12, 4, SIDE, SIDE), SEED)
    model = native("context").add_context_windows(base, LENGTH, 4, "standard_static")
    long = sample(model, 12, "euler", steps=1, noise=noise)
    first, second = (sample(base, LENGTH, "euler", 1, noise=n) for n in (noise[:8], noise[4:]))
    up, down = (torch.tensor(w).view(-1, 1, 1, 1) for w in ([1.0, 2, 3, 4], [4.0, 3, 2, 1]))
    middle = (first[4:] * down + second[:4] * up) / 5
    assert near(long, torch.cat([first[:4], middle, second[4:]]))


def options(native, schedule, overlap=2, closed=False, length=LENGTH):
    return native("context").ContextOptions(length, overlap, schedule, closed, "flat")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_frame_is_in_a_window_of_the_right_length_in_every_step(native, schedule):
    make = native("context").SCHEDULES[schedule]
    for overlap in range(LENGTH):
        for closed in (False, True):
            told = options(native, schedule, overlap, closed)
            for frames in range(LENGTH + 1, 4 * LENGTH + 2):
                for step in range(8):
                    windows = make(frames, told, step)
                    assert all(len(set(w)) == LENGTH for w in windows), (frames, overlap, windows)
                    assert {i for w in windows for i in w} == set(range(frames))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_windows_are_those_of_core(comfy, native, schedule):
    import comfy.context_windows as core

    make = core.get_matching_context_schedule(schedule).func
    for overlap in (0, 1, 4, 7):
        for closed in (False, True):
            told = options(native, schedule, overlap, closed)
            for frames in range(LENGTH + 1, 4 * LENGTH + 2):
                for step in range(9):
                    handler = SimpleNamespace(
                        context_length=LENGTH,
                        context_overlap=overlap,
                        context_stride=1,
                        closed_loop=closed,
                        _step=step,
                    )
                    own = native("context").SCHEDULES[schedule](frames, told, step)
                    assert own == make(frames, handler, {}), (frames, overlap, closed, step)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_videos_of_a_batch_stay_apart(native, base, schedule):
    import comfy.sample

    context = native("context").add_context_windows(base, LENGTH, 2, schedule)
    frames = 12
    model = native("latents").model_for_frames(context, frames)
    noise = comfy.sample.prepare_noise(torch.zeros(2 * frames, 4, SIDE, SIDE), SEED)
    both = sample(model, 2 * frames, "euler", noise=noise)
    for video in (slice(0, frames), slice(frames, None)):
        alone = sample(context, frames, "euler", noise=noise[video])
        assert near(both[video], alone)


def test_empty_latent_video_takes_any_length_after_the_node(native, base):
    model = native("context").add_context_windows(base, LENGTH, 2)
    latent = native("latents").empty_latents(32, 32, 21, 1, model)
    assert latent["samples"].shape == (21, 4, 4, 4)
    known = native("latents").model_for_frames(model, 21)
    assert torch.equal(sample(known, 21), sample(model, 21))


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m_sde", "euler_ancestral"])
def test_samplers_that_look_between_two_levels_work(native, base, sampler):
    model = native("context").add_context_windows(base, LENGTH, 2)
    assert torch.isfinite(sample(model, 12, sampler, steps=2)).all()


def test_the_step_is_found_by_its_noise_level(native):
    levels = torch.tensor([9.0, 4.0, 1.0, 0.0])
    for level, step in ((9.0, 0), (5.0, 0), (4.0, 1), (3.9999, 1), (1.0, 2), (0.5, 2)):
        found = native("context").current_step(torch.full((12,), level), levels)
        assert found == step, level


def test_each_window_gets_the_prompts_of_its_frames(native, base):
    seen = []

    def spy(apply_model, arguments):
        seen.append(arguments["c"]["c_crossattn"][:, 0, 0].tolist())
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model = native("context").add_context_windows(base, LENGTH, 4, "standard_static")
    model.set_model_unet_function_wrapper(spy)
    numbers = torch.arange(12.0).view(-1, 1, 1).expand(-1, 77, 64)
    sample(model, 12, steps=1, cfg=1.0, prompt=numbers)
    assert seen == [list(range(8)), list(range(4, 12))]


def test_each_window_gets_the_controlnet_images_of_its_frames(native, base):
    import copy

    def control(previous, images):
        return SimpleNamespace(
            cond_hint_original=images, cond_hint=torch.ones(1), previous_controlnet=previous
        )

    single = control(None, torch.zeros(1, 3))
    chain = control(single, torch.arange(12.0).view(12, 1))
    kept = copy.copy(chain)
    window = native("context").Window(torch.arange(4, 12), 12)
    part = window.control(chain)
    assert part.cond_hint_original.flatten().tolist() == [*range(4, 12)]
    assert part.cond_hint is None
    assert part.previous_controlnet.cond_hint_original is single.cond_hint_original
    assert window.control(chain) is part
    assert chain.__dict__ == kept.__dict__


@pytest.mark.parametrize("frames", [24, 40])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_long_videos_are_two_runs_of_one(native, base, frames, schedule):
    """Through the whole few-step path of the nodes: latents, noise, sampler."""
    model = native("context").add_context_windows(base, LENGTH, 2, schedule, True)
    both = few_steps(native, model, frames, videos=2, seed=SEED)
    for video in (0, 1):
        alone = few_steps(native, model, frames, videos=1, seed=SEED + video)
        assert near(both[video * frames :][:frames], alone)


def few_steps(native, model, frames, videos, seed):
    import comfy.sample

    sampling = native("sampling")
    latent = native("latents").empty_latents(32, 32, frames, videos, model)
    noise = sampling.StartNoise(seed, "video")
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model,
            noise.generate_noise(latent),
            1.0,
            sampling.few_step_sampler("video"),
            sampling.few_step_sigmas(model, 2),
            [[texts()[0], {}]],
            [[texts()[1], {}]],
            latent["samples"],
            seed=seed,
            disable_pbar=True,
        ).clone()


def test_errors_say_what_to_do(native, base):
    add = native("context").add_context_windows
    with pytest.raises(ValueError, match="not a text-to-video model of this pack"):
        add(object(), 8, 2)
    with pytest.raises(ValueError, match="`context_length`=12 .* 'tiny' .* 8, 16, 24 or 32"):
        add(base, 12, 2)
    for overlap in (8, 9, -1):
        with pytest.raises(ValueError, match=f"`context_overlap`={overlap} must be 0 to 7"):
            add(base, 8, overlap)


def test_the_node_adds_the_windows(comfy, base):
    node = import_module(f"{comfy.__name__}.nodes.context").ContextWindows
    (model,) = node.execute(
        base,
        context_length=8,
        context_overlap=2,
        context_schedule="looped_uniform",
        closed_loop=True,
        fuse_method="flat",
    ).result
    told = model.model_options["mcm_context"]
    assert (told.length, told.overlap, told.closed_loop, told.fuse) == (8, 2, True, "flat")
    assert told.schedule == "looped_uniform"
    assert "mcm_context" not in base.model_options
