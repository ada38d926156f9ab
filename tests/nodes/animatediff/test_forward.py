"""AnimateDiff as a MODEL: diffusers' numbers, LoRAs and dtypes carried, misuse refused."""

from __future__ import annotations

import logging

import pytest
import torch

TOLERANCE = 1e-5
SIZE = 8  # latent pixels


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def make_inputs(frames, videos=1, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = videos * frames
    latents = torch.randn(rows, 4, SIZE, SIZE, generator=generator).to(dtype)
    text = torch.randn(videos, 7, 768, generator=generator).to(dtype)
    return latents, text.repeat_interleave(frames, dim=0)


def predict(model, latents, text, timestep=500, **options):
    """What ComfyUI's BaseModel calls: rows of frames in, rows of frames out."""
    timesteps = torch.full((len(latents),), float(timestep))
    with torch.inference_mode():
        return model.model.diffusion_model(
            latents, timesteps, context=text, transformer_options=options
        )


def expected(unet, latents, text, videos=1, timestep=500, **residuals):
    clips = latents.unflatten(0, (videos, -1)).transpose(1, 2)
    with torch.inference_mode():
        out = unet(clips, timestep, encoder_hidden_states=text, **residuals).sample
    return out.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("frames", [1, 4, 32])
def test_forward_equals_diffusers(clip_model, tiny, frames):
    latents, text = make_inputs(frames)
    found = predict(clip_model, latents, text)
    assert relative(found, expected(tiny.reference(), latents, text)) <= TOLERANCE


def test_prompt_and_negative_prompt_are_two_clips(clip_model, tiny):
    latents, text = make_inputs(4, videos=2)
    found = predict(clip_model, latents, text, cond_or_uncond=[1, 0])
    assert relative(found, expected(tiny.reference(), latents, text, videos=2)) <= TOLERANCE


def test_several_videos_in_each_chunk(clip_model, tiny):
    latents, text = make_inputs(3, videos=4)
    found = predict(clip_model, latents, text, cond_or_uncond=[1, 0], mcm_frames=3)
    assert relative(found, expected(tiny.reference(), latents, text, videos=4)) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 2])
def test_text_of_one_row_or_one_a_video(clip_model, rows):
    latents, text = make_inputs(4, videos=2)
    text = text[::4][:rows]
    every = text.expand(2, -1, -1).repeat_interleave(4, dim=0)
    found = predict(clip_model, latents, text, mcm_frames=4)
    assert torch.equal(found, predict(clip_model, latents, every, mcm_frames=4))


def test_module_without_middle_block(mcm, sd15, tiny, adapter_without_mid, original_keys):
    module = mcm.motion_module.motion_module(original_keys(adapter_without_mid), "mm_sd_v15")
    model = mcm.animatediff.apply_motion_module(sd15, module)
    latents, text = make_inputs(4)
    reference = tiny.reference(adapter_without_mid)
    assert relative(predict(model, latents, text), expected(reference, latents, text)) <= TOLERANCE
    assert mcm.info.video_info(model).frames[-1] == 24


def test_the_unet_is_configured_as_diffusers_would(clip_model, tiny):
    found, wanted = clip_model.model.diffusion_model.config, tiny.reference().config
    plain = {"_class_name", "sample_size", "_use_default_values"}
    for name, value in wanted.items():
        if name not in plain and not name.startswith("_"):
            same = found[name] if not isinstance(found[name], tuple) else list(found[name])
            value = list(value) if isinstance(value, tuple) else value
            if isinstance(same, list) and not isinstance(value, list):
                assert set(same) == {value}, name
            else:
                assert same == value, name


def test_weights_of_the_checkpoint_are_shared(clip_model, sd15):
    ours = clip_model.model.diffusion_model.conv_in.weight
    theirs = sd15.model.diffusion_model.input_blocks[0][0].weight
    assert ours.data_ptr() == theirs.data_ptr()


def test_info_and_noise_schedule(mcm, clip_model):
    info = mcm.info.video_info(clip_model)
    assert (info.family, info.default_frames, info.frames[-1]) == ("animatediff", 16, 32)
    from diffusers import DDIMScheduler

    alphas = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear"
    ).alphas_cumprod
    sigmas = clip_model.get_model_object("model_sampling").sigmas
    torch.testing.assert_close(sigmas, ((1 - alphas) / alphas).sqrt(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_with_fp32_compute(mcm, load, tiny, motion, dtype):
    model = mcm.animatediff.apply_motion_module(
        load(tiny.unet2d.state_dict(), dtype, torch.float32), motion
    )
    assert {value.dtype for value in model.model.diffusion_model.parameters()} == {dtype}
    assert model.model.get_dtype() == dtype
    assert model.model.manual_cast_dtype == torch.float32
    reference = tiny.reference().to(dtype).float()  # rounded weights, exact maths
    for module in reference.modules():
        if hasattr(module, "pe"):
            exact = mcm.motion_module.sinusoid(*module.pe.shape[1:])
            module.pe = exact
    latents, text = make_inputs(4)
    found = predict(model, latents, text)
    assert relative(found, expected(reference, latents, text)) <= TOLERANCE


def lora_patch(shape, seed):
    """A LoRA of rank 2 in the form ComfyUI's loader adds."""
    from comfy.weight_adapter import LoRAAdapter

    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], 2, generator=generator) * 0.1
    down = torch.randn(2, shape[1:].numel(), generator=generator) * 0.1
    weights = (up, down, 2.0, None, None, None)
    return LoRAAdapter(set(), weights), (up @ down).reshape(shape)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("loaded_first", [False, True])
def test_loras_applied_upstream_carry_over(mcm, sd15, tiny, motion, strength, loaded_first):
    import comfy.lora

    key_map = comfy.lora.model_lora_keys_unet(sd15.model, {})
    paths = [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.proj_in",
        "up_blocks.3.resnets.2.conv1",
    ]
    reference, patches = tiny.reference(), {}
    for seed, path in enumerate(paths):
        weight = reference.get_submodule(path).weight
        patch, delta = lora_patch(weight.shape, seed)
        patches[key_map["lora_unet_" + path.replace(".", "_")]] = patch
        weight.data += strength * delta
    with_lora = sd15.clone()
    assert len(with_lora.add_patches(patches, strength)) == 3
    if loaded_first:  # as after a run of the image model: its weights hold the LoRA already
        with_lora.patch_model(torch.device("cpu"))
    model = mcm.animatediff.apply_motion_module(with_lora, motion)
    if loaded_first:
        with_lora.unpatch_model(torch.device("cpu"))
    latents, text = make_inputs(4)
    plain = predict(model, latents, text)
    model.patch_model(torch.device("cpu"))
    found = predict(model, latents, text)
    model.unpatch_model(torch.device("cpu"))
    wanted = expected(reference, latents, text)
    assert relative(plain, wanted) > 10 * TOLERANCE
    assert relative(found, wanted) <= TOLERANCE
    assert torch.equal(predict(model, latents, text), plain)


def test_cores_lora_loader_works_after_the_motion_module(clip_model, tiny):
    import comfy.sd

    path = "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k"
    reference = tiny.reference()
    weight = reference.get_submodule(path).weight
    patch, delta = lora_patch(weight.shape, 5)
    name = "lora_unet_" + path.replace(".", "_")
    file = {
        f"{name}.lora_up.weight": patch.weights[0],
        f"{name}.lora_down.weight": patch.weights[1],
    }
    file[f"{name}.alpha"] = torch.tensor(2.0)
    weight.data += delta
    model, _ = comfy.sd.load_lora_for_models(clip_model, None, file, 1.0, 0.0)
    model.patch_model(torch.device("cpu"))
    latents, text = make_inputs(2)
    assert relative(predict(model, latents, text), expected(reference, latents, text)) <= TOLERANCE


def test_lost_changes_are_named_in_one_warning(mcm, sd15, motion, caplog):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    sd15.set_model_attn2_patch(lambda q, k, v, extra: (q, k, v))
    sd15.set_model_patch(lambda x, extra: x, "middle_patch")
    sd15 = ModelSamplingDiscrete().patch(sd15, "eps", True)[0]
    with caplog.at_level(logging.WARNING):
        model = mcm.animatediff.apply_motion_module(sd15, motion)
    assert len(caplog.records) == 1
    assert "middle_patch, model_sampling." in caplog.text
    assert "attn2_patch" in model.model_options["transformer_options"]["patches"]
    assert not model.object_patches


def test_cfg_functions_carry_over_and_the_image_model_stays(mcm, sd15, motion):
    sd15.set_model_sampler_cfg_function(lambda args: args["cond"])
    before = set(sd15.model.state_dict())
    model = mcm.animatediff.apply_motion_module(sd15, motion)
    assert "sampler_cfg_function" in model.model_options
    assert set(sd15.model.state_dict()) == before
    latents, _ = make_inputs(1)
    with torch.inference_mode():
        sd15.model.diffusion_model(latents, torch.tensor([5.0]), context=torch.zeros(1, 7, 768))


def test_33_frames_are_refused(clip_model):
    latents, text = make_inputs(33)
    with pytest.raises(ValueError, match="1 to 32"):
        predict(clip_model, latents, text)


def test_a_clip_model_is_no_base(mcm, clip_model, motion):
    with pytest.raises(ValueError, match="already a video model"):
        mcm.animatediff.apply_motion_module(clip_model, motion)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("context_dim", 1024, "text width 1024"),
        ("in_channels", 9, "9 input channels"),
        ("model_channels", 64, "is for channels"),
        ("num_res_blocks", [1, 1, 1, 1], "layers"),
    ],
)
def test_another_base_is_refused(mcm, sd15, motion, name, value, message):
    sd15.model.model_config.unet_config[name] = value
    with pytest.raises(ValueError, match=message):
        mcm.animatediff.apply_motion_module(sd15, motion)


def test_a_quantised_base_is_refused(mcm, sd15, motion):
    import comfy.ops

    sd15.model.model_config.custom_operations = comfy.ops.manual_cast
    with pytest.raises(ValueError, match="quantised"):
        mcm.animatediff.apply_motion_module(sd15, motion)


def test_a_module_with_a_missing_weight_is_refused(mcm, sd15, motion):
    del motion.weights["up_blocks.0.motion_modules.0.proj_in.bias"]
    with pytest.raises(ValueError, match="1 missing"):
        mcm.animatediff.apply_motion_module(sd15, motion)
