"""ControlNet and T2I-Adapter residuals land where ComfyUI's own SD 1.5 adds them."""

from __future__ import annotations

import copy

import pytest
import torch

TOLERANCE = 1e-5
SIZE = 16
FRAMES = 3
WIDTHS = (32, 32, 32, 32, 64, 64, 64, 64, 64, 64, 64, 64)  # of the down path's twelve layers
SIZES = (16, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)


@pytest.fixture
def still_model(mcm, sd15, motion):
    """A clip model whose motion modules do nothing: each frame is ComfyUI's own SD 1.5."""
    for key in motion.weights:
        if ".proj_out." in key:
            motion.weights[key] = torch.zeros_like(motion.weights[key])
    return mcm.animatediff.apply_motion_module(sd15, motion)


def make_inputs(rows=FRAMES):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 4, SIZE, SIZE, generator=generator)
    return latents, torch.full((rows,), 300.0), torch.randn(rows, 7, 768, generator=generator)


def make_control(kinds, rows=FRAMES):
    generator = torch.Generator().manual_seed(1)
    layers = [
        torch.randn(rows, width, size, size, generator=generator)
        for width, size in zip(WIDTHS, SIZES, strict=True)
    ]
    adapter = [layer if i % 3 == 2 else None for i, layer in enumerate(layers)]
    control = {
        "output": layers,
        "middle": [torch.randn(rows, 64, 2, 2, generator=generator)],
        "input": adapter[::-1],
    }
    return {kind: value if kind in kinds else [] for kind, value in control.items()}


def run(model, control, rows=FRAMES):
    latents, timesteps, text = make_inputs(rows)
    with torch.inference_mode():
        unet, given = model.model.diffusion_model, copy.deepcopy(control)
        return unet(latents, timesteps, context=text, control=given, transformer_options={})


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kinds", [("output",), ("middle",), ("output", "middle"), ("input",)])
def test_each_kind_acts_as_in_comfyuis_unet(still_model, sd15, kinds):
    control = make_control(kinds)
    found, wanted = run(still_model, control), run(sd15, control)
    plain = run(still_model, None)
    assert relative(found, wanted) <= 5 * TOLERANCE  # two attention implementations apart
    assert relative(found, plain) > 1e-2


def test_missing_residuals_add_nothing(still_model, sd15):
    control = make_control(("output",))
    control["output"] = [None if i % 2 else value for i, value in enumerate(control["output"])]
    assert relative(run(still_model, control), run(sd15, control)) <= 5 * TOLERANCE


def test_residuals_equal_diffusers_arguments(clip_model, tiny):
    control = make_control(("output", "middle"))
    latents, timesteps, text = make_inputs()
    with torch.inference_mode():
        wanted = tiny.reference()(
            latents.transpose(0, 1)[None],
            timesteps[:1],
            encoder_hidden_states=text,
            down_block_additional_residuals=tuple(control["output"]),
            mid_block_additional_residual=control["middle"][0],
        ).sample[0]
    assert relative(run(clip_model, control), wanted.transpose(0, 1)) <= TOLERANCE


def test_control_lists_are_left_alone_and_hooks_removed(clip_model):
    control = make_control(("input",))
    latents, timesteps, text = make_inputs()
    unet = clip_model.model.diffusion_model
    with torch.inference_mode():
        before = unet(latents, timesteps, context=text, transformer_options={})
        unet(latents, timesteps, context=text, control=control, transformer_options={})
        after = unet(latents, timesteps, context=text, transformer_options={})
    assert len(control["input"]) == 12
    assert torch.equal(before, after)


def test_a_controlnet_of_another_model_is_refused(clip_model):
    control = make_control(("output",))
    control["output"] = control["output"] * 2
    with pytest.raises(ValueError, match="24 `output` residuals"):
        run(clip_model, control)


def test_a_wrong_number_of_rows_is_refused(clip_model):
    with pytest.raises(ValueError, match="2 rows, the batch 3 frames"):
        run(clip_model, make_control(("output",), rows=2))


def test_comfyuis_controlnet_through_a_sampler(still_model, sd15):
    """A real ControlNet object, a hint a frame: two steps as on the image model."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops
    import comfy.sample
    import comfy.samplers

    torch.manual_seed(3)
    options = {**sd15.model.model_config.unet_config, "hint_channels": 3}
    options.pop("out_channels")
    network = comfy.cldm.cldm.ControlNet(**options, operations=comfy.ops.disable_weight_init)
    with torch.no_grad():
        for parameter in network.parameters():  # ComfyUI's layers come uninitialised
            parameter.normal_(0.0, 0.05)
    net = comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))
    control = net.copy().set_cond_hint(torch.rand(FRAMES, 3, 64, 64), 0.7)
    latents, _, text = make_inputs()
    latents = latents[:, :, :8, :8]
    betas = still_model.get_model_object("model_sampling")  # linear; the image model's are not
    sd15.add_object_patch("model_sampling", betas)
    sigmas = torch.tensor([4.0, 1.0, 0.0])
    found = {}
    for name, model in (("clip", still_model), ("image", sd15)):
        for given in (control, None):
            extra = {"control": given, "control_apply_to_uncond": True} if given else {}
            found[name, given is None] = comfy.sample.sample_custom(
                model,
                latents,
                3.0,
                comfy.samplers.sampler_object("euler"),
                sigmas,
                [[text[:1], extra]],
                [[text[1:2], extra]],
                torch.zeros_like(latents),
                disable_pbar=True,
                seed=0,
            )
    assert relative(found["clip", False], found["image", False]) <= 1e-4
    assert relative(found["clip", False], found["clip", True]) > 1e-3


def test_a_control_lora_is_refused_by_name(still_model):
    import comfy.controlnet
    import comfy.sample
    import comfy.samplers

    weights = {"input_hint_block.0.weight": torch.zeros(16, 3, 3, 3)}
    lora = comfy.controlnet.ControlLora(weights).set_cond_hint(torch.rand(FRAMES, 3, 64, 64), 0.7)
    outer = comfy.controlnet.ControlNet(None).set_cond_hint(torch.rand(FRAMES, 3, 64, 64), 0.7)
    outer.set_previous_controlnet(lora)
    latents, _, text = make_inputs()
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([4.0, 0.0])
    condition = [[text[:1], {"control": outer, "control_apply_to_uncond": True}]]
    with pytest.raises(ValueError, match="Control-LoRA .* full ControlNet"):
        comfy.sample.sample_custom(
            still_model, latents, 1.0, sampler, sigmas, condition, condition,
            torch.zeros_like(latents), disable_pbar=True, seed=0,
        )  # fmt: skip
