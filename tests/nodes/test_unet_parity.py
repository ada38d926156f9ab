"""The native UNet computes what diffusers computes, for one video and for many."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

PROMPT_ROWS, WIDTH, SIDE, FRAMES = 77, 64, 4, 8


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def model(native, tiny_model):
    return native("model").load_native_model(tiny_model, "fp32")


@pytest.fixture(scope="module")
def reference(comfy, tiny_model):
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel.from_pretrained(tiny_model / "unet").eval()


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def diffusers_frames(reference, latents, timestep, text):
    """Noise (F, 4, h, w) of one video (F, 4, h, w) with one text (1, L, D)."""
    video = latents.unsqueeze(0).transpose(1, 2)
    return reference(video, timestep, encoder_hidden_states=text).sample[0].transpose(0, 1)


@torch.inference_mode()
@pytest.mark.parametrize("timestep", [0, 499, 999])
def test_forward_equals_diffusers(model, reference, timestep):
    latents, text = seeded(FRAMES, 4, SIDE, SIDE), seeded(1, PROMPT_ROWS, WIDTH, seed=1)
    ours = model.model.diffusion_model(
        latents, torch.full((FRAMES,), float(timestep)), context=text.expand(FRAMES, -1, -1)
    )
    assert relative(ours, diffusers_frames(reference, latents, timestep, text)) <= 1e-5


@torch.inference_mode()
def test_videos_and_conditionings_of_a_batch_stay_apart(model, reference):
    latents = seeded(2 * 2 * FRAMES, 4, SIDE, SIDE)  # two conditionings of two videos
    texts = [seeded(1, PROMPT_ROWS, WIDTH, seed=seed) for seed in (1, 2)]
    context = torch.cat([text.expand(2 * FRAMES, -1, -1) for text in texts])
    ours = model.model.diffusion_model(
        latents,
        torch.full((len(latents),), 500.0),
        context=context,
        transformer_options={"cond_or_uncond": [0, 1], "mcm_frames": FRAMES},
    )
    videos = latents.split(FRAMES)
    alone = [
        diffusers_frames(reference, video, 500, texts[i // 2]) for i, video in enumerate(videos)
    ]
    assert relative(ours, torch.cat(alone)) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_ksampler_samples_two_videos_as_if_each_were_alone(native, model, cfg):
    import comfy.sample

    noise = seeded(2 * FRAMES, 4, SIDE, SIDE)
    texts = [[[seeded(1, PROMPT_ROWS, WIDTH, seed=seed), {}]] for seed in (1, 2)]

    def sample(patcher, rows):
        return comfy.sample.sample(
            patcher, rows, 3, cfg, "euler", "normal", *texts, torch.zeros_like(rows), seed=0
        )

    together = sample(native("latents").model_for_frames(model, FRAMES), noise)
    alone = torch.cat([sample(model, video) for video in noise.split(FRAMES)])
    assert relative(together, alone) <= 1e-5


@torch.inference_mode()
def test_cfg_prediction_equals_the_diffusers_formula(model, reference):
    import comfy.model_management
    import comfy.samplers

    comfy.model_management.load_models_gpu([model])
    x, scale, sigma = seeded(FRAMES, 4, SIDE, SIDE) * 3, 7.5, 3.0
    texts = [seeded(1, PROMPT_ROWS, WIDTH, seed=seed) for seed in (1, 2)]
    conds = comfy.samplers.process_conds(
        model.model,
        x,
        {
            name: comfy.sampler_helpers.convert_cond([[text, {}]])
            for name, text in zip(("positive", "negative"), texts, strict=True)
        },
        x.device,
    )
    model.pre_run()
    ours = comfy.samplers.sampling_function(
        model.model,
        x,
        torch.full((FRAMES,), sigma),
        conds["negative"],
        conds["positive"],
        scale,
        model.model_options,
    )
    sampling = model.get_model_object("model_sampling")
    timestep = int(sampling.timestep(torch.tensor([sigma])))
    scaled = x / (sigma**2 + 1) ** 0.5
    wanted, empty = (diffusers_frames(reference, scaled, timestep, text) for text in texts)
    assert relative(ours, x - sigma * (empty + scale * (wanted - empty))) <= 1e-5


def test_noise_levels_are_those_of_the_scheduler_config(model, tiny_model):
    from diffusers import DDIMScheduler

    alphas = DDIMScheduler.from_pretrained(tiny_model / "scheduler").alphas_cumprod
    ours = model.get_model_object("model_sampling").sigmas
    assert torch.equal(ours, ((1 - alphas) / alphas).sqrt())


@pytest.mark.parametrize("name", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_every_beta_schedule_of_diffusers_has_its_core_twin(native, name):
    import comfy.model_sampling
    from diffusers import DDIMScheduler

    config = {"beta_schedule": name, "beta_start": 0.001, "beta_end": 0.02}

    class Config:
        sampling_settings = native("model").sampling_settings(config)

    alphas = DDIMScheduler(**config).alphas_cumprod.double()
    sigmas = comfy.model_sampling.ModelSamplingDiscrete(Config()).sigmas.double()
    reference = ((1 - alphas) / alphas).sqrt()
    assert torch.allclose(sigmas[:999], reference[:999], rtol=1e-3, atol=0)


def test_an_unknown_schedule_is_refused(native):
    with pytest.raises(ValueError, match="`beta_schedule`='sigmoid'.*scaled_linear"):
        native("model").sampling_settings({"beta_schedule": "sigmoid"})


@torch.inference_mode()
@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (7, {}, "`frames`=7 is not supported by 'tiny'; use 8, 16, 24 or 32"),
        (1, {}, "`frames`=1 is not supported"),
        (12, {"mcm_frames": 8}, "12 frames, which is not a whole number of videos"),
        (9, {"cond_or_uncond": [0, 1]}, "not a whole number of videos"),
    ],
)
def test_wrong_frame_counts_are_errors_not_garbage(model, rows, options, message):
    with pytest.raises(ValueError, match=message):
        model.model.diffusion_model(
            seeded(rows, 4, SIDE, SIDE),
            torch.zeros(rows),
            context=seeded(rows, PROMPT_ROWS, WIDTH),
            transformer_options=options,
        )


@torch.inference_mode()
def test_a_controlnet_is_refused(model):
    with pytest.raises(ValueError, match="'tiny' has no ControlNets.*AnimateDiff"):
        model.model.diffusion_model(
            seeded(FRAMES, 4, SIDE, SIDE),
            torch.zeros(FRAMES),
            context=seeded(FRAMES, PROMPT_ROWS, WIDTH),
            control={"middle": [torch.zeros(1)], "output": []},
        )


@torch.inference_mode()
def test_wrappers_of_other_packs_run_around_the_unet(model):
    from comfy.patcher_extension import WrappersMP

    seen = []

    def wrapper(executor, x, *args, **kwargs):
        seen.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    import comfy.sample

    text = [[seeded(1, PROMPT_ROWS, WIDTH), {}]]
    noise = seeded(FRAMES, 4, SIDE, SIDE)
    comfy.sample.sample(
        clone, noise, 1, 1.0, "euler", "normal", text, text, torch.zeros_like(noise), seed=0
    )
    assert seen == [(FRAMES, 4, SIDE, SIDE)]
