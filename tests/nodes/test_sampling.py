"""ComfyUI's samplers on a few-step MODEL give the clips of diffusers and of the trainer."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

FRAMES, SIDE, SEED = 8, 4, 11
TOLERANCE = 1e-5
STEPS = (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def base(native, tiny_model):
    return native("model").load_native_model(tiny_model, "fp32")


@pytest.fixture
def student(native, base):
    return native("sampling").apply_model_sampling(base)


@pytest.fixture(scope="module")
def trained(tiny_model):
    from trainer.families import load_model

    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def texts(trained):
    """Prompt and negative prompt, (1, L, D) each."""
    return trained.encode_text(["a red star growing"]), trained.encode_text([""])


def lcm(model, **options):
    from diffusers import LCMScheduler

    config = {"timestep_scaling": 4.0, "original_inference_steps": 50, **options}
    keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    return LCMScheduler(**{key: model.noise.config[key] for key in keys}, **config)


@torch.no_grad()
def pipeline_loop(trained, scheduler, latents, texts, cfg, generator):
    """The loop of `TextToVideoSDPipeline`: ``latents`` (B, C, F, h, w), steps on (B * F, C, h, w).

    The result is (B * F, C, h, w).
    """
    videos = latents.shape[0]
    for t in scheduler.timesteps:
        both = torch.cat([latents, latents])
        text = torch.cat([texts[1].expand(videos, -1, -1), texts[0].expand(videos, -1, -1)])
        uncond, cond = trained.network(both, t, encoder_hidden_states=text).sample.chunk(2)
        eps = cond if cfg == 1 else uncond + cfg * (cond - uncond)
        rows, noise = (x.transpose(1, 2).flatten(0, 1) for x in (latents, eps))
        rows = scheduler.step(noise, t, rows, generator=generator).prev_sample
        latents = rows.unflatten(0, (videos, -1)).transpose(1, 2)
    return as_rows(latents)


def near(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE


def as_rows(clips):
    """(B, C, F, h, w) -> (B * F, C, h, w)"""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(rows, videos=1):
    return rows.unflatten(0, (videos, -1)).transpose(1, 2)


def custom(model, sampler, noise, steps, texts, cfg, native, latent=None, seed=SEED, sigmas=None):
    """Latents (rows, 4, h, w), in the network's scale, of core's SamplerCustomAdvanced."""
    import comfy.sample

    if sigmas is None:
        sigmas = native("sampling").few_step_sigmas(model, steps)
    latent = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        out = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            [[texts[0], {}]],
            [[texts[1], {}]],
            latent,
            seed=seed,
            disable_pbar=True,
        )
        return model.model.process_latent_in(out).clone()


def ksampler(model, steps, cfg, texts, seed=SEED):
    """Core's KSampler node, lcm and simple, on an empty latent."""
    import comfy.sample

    latent = torch.zeros(FRAMES, 4, SIDE, SIDE)
    with torch.inference_mode():
        out = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            steps,
            cfg,
            "lcm",
            "simple",
            [[texts[0], {}]],
            [[texts[1], {}]],
            latent,
            seed=seed,
            disable_pbar=True,
        )
        return model.model.process_latent_in(out).clone()


@pytest.mark.parametrize("original", [50, 30, 7])
def test_the_sigmas_are_the_levels_of_diffusers_for_every_number_of_steps(
    native, base, trained, original
):
    import comfy.samplers

    sampling = native("sampling")
    model = sampling.apply_model_sampling(base, original_steps=original)
    table = model.get_model_object("model_sampling")
    scheduler = lcm(trained, original_inference_steps=original)
    for steps in range(1, original + 1):
        scheduler.set_timesteps(steps)
        sigmas = sampling.few_step_sigmas(model, steps)
        assert table.timestep(sigmas[:-1]).tolist() == scheduler.timesteps.tolist()
        assert torch.equal(sigmas, comfy.samplers.simple_scheduler(table, steps))
        assert sigmas[-1] == 0
    levels = scheduler.alphas_cumprod[scheduler.timesteps]
    assert torch.equal(sigmas[:-1], ((1 - levels) / levels).sqrt())


@pytest.mark.parametrize("denoise", [0.9, 0.5, 0.3])
def test_denoise_is_the_strength_of_diffusers(native, student, trained, denoise):
    scheduler = lcm(trained)
    table = student.get_model_object("model_sampling")
    for steps in (1, 2, 4, 8):
        scheduler.set_timesteps(steps, strength=denoise)
        sigmas = native("sampling").few_step_sigmas(student, steps, denoise)
        assert table.timestep(sigmas[:-1]).tolist() == scheduler.timesteps.tolist()
    assert native("sampling").few_step_sigmas(student, 4, 0.0).numel() == 0


def test_sigma_and_timestep_are_inverse_on_the_table(student):
    table = student.get_model_object("model_sampling")
    timesteps = torch.arange(19, 1000, 20)
    assert torch.allclose(table.sigma(timesteps), table.sigmas, rtol=1e-6)
    assert torch.equal(table.timestep(table.sigmas), timesteps)


@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("steps", STEPS)
def test_plain_ksampler_is_diffusers_lcm_scheduler(student, trained, texts, steps, cfg):
    scheduler = lcm(trained)
    scheduler.set_timesteps(steps)
    start = torch.randn(FRAMES, 4, SIDE, SIDE, generator=torch.manual_seed(SEED))
    noise = torch.Generator().manual_seed(SEED + 1)
    wanted = pipeline_loop(trained, scheduler, as_clips(start), texts, cfg, noise)
    assert near(ksampler(student, steps, cfg, texts), wanted)


def test_without_the_node_ksampler_is_not_right(base, trained, texts, student):
    assert not torch.allclose(
        ksampler(base, 4, 1.0, texts), ksampler(student, 4, 1.0, texts), rtol=0.01
    )


def test_the_sampling_stays_right_when_it_is_set_again(native, base, student, texts):
    """A MODEL that has been sampled holds its patched sampling inside; a second patch must start
    from the base model's levels all the same.
    """
    expected = ksampler(student, 4, 1.0, texts)
    again = native("sampling").apply_model_sampling(student)
    assert torch.equal(ksampler(again, 4, 1.0, texts), expected)
    other = native("sampling").apply_model_sampling(student, 10.0, 25)
    assert len(other.get_model_object("model_sampling").sigmas) == 25


@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("steps", STEPS)
def test_the_frames_order_is_text_to_video_pipeline(native, student, trained, texts, steps, cfg):
    sampling = native("sampling")
    scheduler = lcm(trained)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=generator)
    wanted = pipeline_loop(trained, scheduler, start, texts, cfg, generator)
    latent = {"samples": torch.zeros(FRAMES, 4, SIDE, SIDE)}
    noise = sampling.StartNoise(SEED, "frames").generate_noise(latent)
    sampler = sampling.few_step_sampler("frames")
    assert near(custom(student, sampler, noise, steps, texts, cfg, native), wanted)


@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_video_order_is_the_trainers_sampler(native, student, trained, texts, steps, videos):
    from trainer.diffusion.sampling import sample_lcm

    sampling, latents = native("sampling"), native("latents")
    shape = (videos, 4, FRAMES, SIDE, SIDE)
    text = texts[0].expand(videos, -1, -1)
    wanted = sample_lcm(trained.predict, trained.noise, text, shape, steps, seed=SEED)
    model = latents.model_for_frames(student, FRAMES)
    latent = latents.empty_latents(SIDE * 8, SIDE * 8, FRAMES, videos, model)
    noise = sampling.StartNoise(SEED, "video").generate_noise(latent)
    found = custom(model, sampling.few_step_sampler("video"), noise, steps, texts, 1.0, native)
    assert near(as_clips(found, videos), wanted)


def test_the_nodes_make_the_clips_of_the_trainers_command(comfy, native, student, trained):
    """Two videos of two prompts, guidance included, down to the pixels of `generate_clips`."""
    from trainer.evaluate.generate import generate_clips

    nodes = import_module(f"{comfy.__name__}.nodes.sampling")
    prompts = ["a red star growing", "a blue disc turning"]
    wanted = generate_clips(trained, prompts, steps=4, guidance_scale=2.0, seed=SEED)
    model = native("latents").model_for_frames(student, FRAMES)
    latent = native("latents").empty_latents(SIDE * 8, SIDE * 8, FRAMES, 2, model)
    text = trained.encode_text(prompts).repeat_interleave(FRAMES, dim=0)
    (sigmas,) = nodes.Scheduler.execute(model, 4, 1.0).result
    (sampler,) = nodes.Sampler.execute("video").result
    (noise,) = nodes.Noise.execute(SEED, "video").result
    start, negative = noise.generate_noise(latent), trained.encode_text([""])
    rows = custom(
        model, sampler, start, 4, (text, negative), 2.0, native, seed=noise.seed, sigmas=sigmas
    )
    found = trained.decode_clips(as_clips(rows, 2))
    assert float((found - wanted).abs().max()) <= 1e-4


def test_a_video_does_not_depend_on_its_batch_in_the_video_order(native):
    noise = native("sampling").noise_of
    both = noise("video", SEED, (2 * FRAMES, 4, SIDE, SIDE), FRAMES)
    second = noise("video", SEED + 1, (FRAMES, 4, SIDE, SIDE), FRAMES)
    for _ in range(3):
        assert torch.equal(next(both)[FRAMES:], next(second))


@pytest.mark.parametrize("seed", [SEED, 2**64 - 1])
def test_the_core_order_is_plain_ksampler(native, student, texts, seed):
    sampling = native("sampling")
    latent = {"samples": torch.zeros(FRAMES, 4, SIDE, SIDE)}
    noise = sampling.StartNoise(seed, "core").generate_noise(latent)
    sampler = sampling.few_step_sampler("core")
    found = custom(student, sampler, noise, 4, texts, 1.0, native, seed=seed)
    assert torch.equal(found, ksampler(student, 4, 1.0, texts, seed))


def test_the_steps_of_ksampler_draw_from_the_next_seed(native, student, texts):
    """On the CPU, whatever core does by itself: one step of noise, written out."""
    sigmas = native("sampling").few_step_sigmas(student, 2)
    first = ksampler_from(student, sigmas[[0, 2]], texts, start=start_noise(SEED) * sigmas[0])
    generator = torch.Generator().manual_seed(SEED + 1)
    noisy = first + torch.randn(first.shape, generator=generator) * sigmas[1]
    assert near(ksampler(student, 2, 1.0, texts), ksampler_from(student, sigmas[1:], texts, noisy))


def start_noise(seed):
    shape = (FRAMES, 4, SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def ksampler_from(model, sigmas, texts, start):
    """One model call of core's euler, whose one step to 0 is the prediction, from ``start``."""
    import comfy.samplers

    sampler = comfy.samplers.ksampler("euler")
    return custom(model, sampler, start / sigmas[0], 1, texts, 1.0, None, sigmas=sigmas)


def test_the_largest_seed_works(native, student, texts):
    sampling = native("sampling")
    seed = 2**64 - 1
    assert torch.isfinite(ksampler(student, 2, 1.0, texts, seed)).all()
    for order in ("video", "frames"):
        draws = sampling.noise_of(order, seed, (FRAMES, 4, SIDE, SIDE), FRAMES // 2)
        assert torch.isfinite(next(draws)).all()
        assert torch.isfinite(next(draws)).all()


def test_an_existing_video_is_changed_from_its_denoise_on(native, student, trained, texts):
    sampling = native("sampling")
    clip = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=torch.manual_seed(3))
    noise = sampling.StartNoise(SEED, "frames").generate_noise({"samples": as_rows(clip)})
    scheduler = lcm(trained)
    scheduler.set_timesteps(4, strength=0.5)
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=generator)
    noisy = scheduler.add_noise(clip, start, scheduler.timesteps[:1])
    wanted = pipeline_loop(trained, scheduler, noisy, texts, 1.0, generator)
    found = custom(
        student,
        sampling.few_step_sampler("frames"),
        noise,
        4,
        texts,
        1.0,
        native,
        latent=student.model.process_latent_out(as_rows(clip)),
        sigmas=sampling.few_step_sigmas(student, 4, 0.5),
    )
    assert near(found, wanted)


def test_errors_say_what_to_do(native, base, student):
    sampling = native("sampling")
    with pytest.raises(ValueError, match="not a text-to-video model of this pack"):
        sampling.apply_model_sampling(object())
    with pytest.raises(ValueError, match="`timestep_scaling`=0 must be a positive number"):
        sampling.apply_model_sampling(base, timestep_scaling=0)
    with pytest.raises(ValueError, match="`original_steps`=1001 is not within 1 to 1000"):
        sampling.apply_model_sampling(base, original_steps=1001)
    with pytest.raises(ValueError, match="base model's noise levels. Connect the MODEL of"):
        sampling.few_step_sigmas(base, 4)
    with pytest.raises(ValueError, match="`steps`=51 .* 50 noise levels"):
        sampling.few_step_sigmas(student, 51)
    with pytest.raises(ValueError, match="`steps`=8 with `denoise`=0.1 .* 5 noise levels"):
        sampling.few_step_sigmas(student, 8, 0.1)
    with pytest.raises(ValueError, match="not whole videos of 7 frames"):
        sampling.noise_of("video", 0, (16, 4, 4, 4), 7)


def test_a_model_that_predicts_velocity_is_sampled_as_the_trainer_samples_it(
    native, tiny_model, tmp_path, texts
):
    """The same weights read as noise and as velocity are two models; both readers agree."""
    from trainer.diffusion.sampling import sample_lcm
    from trainer.families import load_model

    folder = Path(shutil.copytree(tiny_model, tmp_path / "v"))
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"prediction_type": "v_prediction"}
    file.write_text(json.dumps(config), encoding="utf-8")
    trained, clips = load_model(str(folder)), []
    base = native("model").load_native_model(folder, "fp32")
    assert native("sampling").prediction_of(base) == "V_PREDICTION"
    for model in (trained, load_model(str(tiny_model))):
        shape = (1, 4, FRAMES, SIDE, SIDE)
        clips.append(sample_lcm(model.predict, model.noise, texts[0], shape, 4, seed=SEED))
    student = native("sampling").apply_model_sampling(base)
    noise = native("sampling").StartNoise(SEED, "video").draw((FRAMES, 4, SIDE, SIDE), FRAMES)
    sampler = native("sampling").few_step_sampler("video")
    found = as_clips(custom(student, sampler, noise, 4, texts, 1.0, native))
    assert near(found, clips[0])
    assert not near(found, clips[1])


def test_a_model_sampling_node_says_what_the_network_predicts(native, base, student, texts):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def patched(kind):
        return ModelSamplingDiscrete().patch(base, kind, False)[0]

    velocity = native("sampling").apply_model_sampling(patched("v_prediction"))
    assert not near(ksampler(velocity, 2, 1.0, texts), ksampler(student, 2, 1.0, texts))
    again = native("sampling").apply_model_sampling(velocity)
    assert torch.equal(ksampler(again, 2, 1.0, texts), ksampler(velocity, 2, 1.0, texts))
    noise = native("sampling").apply_model_sampling(patched("eps"))
    assert torch.equal(ksampler(noise, 2, 1.0, texts), ksampler(student, 2, 1.0, texts))
    with pytest.raises(ValueError, match="predict noise .eps. or velocity"):
        native("sampling").apply_model_sampling(patched("x0"))


def test_a_zero_terminal_snr_model_is_refused(native, base):
    from dataclasses import replace

    clone = base.clone()
    kept = clone.model.mcm_info
    zero = {**kept.scheduler_config, "rescale_betas_zero_snr": True}
    clone.model.mcm_info = replace(kept, scheduler_config=zero)
    try:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            native("sampling").apply_model_sampling(clone)
    finally:
        clone.model.mcm_info = kept
