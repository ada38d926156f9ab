"""What a step keeps: half weights, recomputed blocks, chunked decoding, offloaded state."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from peft.tuners.lora import LoraLayer
from torch import nn

from trainer.distill.meter import MemoryMeter
from trainer.distill.optimizers import BETAS, OffloadedAdamW, build_optimizer
from trainer.distill.student import (
    ParameterEma,
    compute_lora_in_input_dtype,
    gradient_scale,
    order_channels_last,
)
from trainer.families import load_model
from trainer.lora.adapter import add_lora, lora_parameters
from trainer.models.checkpointing import blocks, compile_blocks, enable_checkpointing
from trainer.settings import OptimConfig

FRAMES, SIDE = 8, 8


@pytest.fixture(params=["modelscope", "animatediff"])
def model(request, tiny_model):
    """A tiny model of each family with an adapter, in eval mode."""
    if request.param == "modelscope":
        loaded = load_model(str(tiny_model))
    else:
        checkpoint = request.getfixturevalue("sd15_checkpoint")
        motion = request.getfixturevalue("motion_module_file")
        loaded = load_model(str(checkpoint), motion_module=motion)
    add_lora(loaded.network, 2, 2.0)
    return loaded


def inputs(model, dtype=torch.float32, side=SIDE):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, FRAMES, side, side, generator=generator)
    text = torch.randn(1, 7, model.text.width, generator=generator)
    return latents, torch.tensor([500]), text.to(dtype)


def gradients(model, side=SIDE) -> list[torch.Tensor]:
    for parameter in lora_parameters(model.network):
        parameter.grad = None
    model.predict(*inputs(model, model.dtype, side)).square().mean().backward()
    return [p.grad.clone() for p in lora_parameters(model.network) if p.grad is not None]


def kept_bytes(model) -> int:
    """Bytes that are alive between a forward pass and its backward pass."""
    with MemoryMeter("cpu") as meter:
        out = model.predict(*inputs(model, model.dtype))
        kept = meter.now
    del out
    return kept


def test_recomputing_keeps_a_fraction_and_changes_no_gradient(model):
    plain, before = gradients(model), kept_bytes(model)
    assert enable_checkpointing(model.network, model.family.blocks) > 0
    assert enable_checkpointing(model.network, model.family.blocks) == 0
    assert kept_bytes(model) < 0.25 * before
    for ours, theirs in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_recomputing_reaches_two_d_three_d_and_motion_blocks(model):
    covered = {
        id(m) for block in blocks(model.network, model.family.blocks) for m in block.modules()
    }
    attention = [n for n, m in model.network.named_modules() if type(m).__name__ == "Attention"]
    convolutions = [n for n, m in model.network.named_modules() if isinstance(m, nn.Conv3d)]
    named = dict(model.network.named_modules())
    assert attention and all(id(named[name]) in covered for name in attention)
    assert all(id(named[name]) in covered for name in convolutions)
    if model.family.name == "animatediff":
        assert any(
            isinstance(b, AnimateDiffTransformer3D)
            for b in blocks(model.network, model.family.blocks)
        )
    else:
        assert convolutions


def test_recomputing_without_blocks_is_refused():
    with pytest.raises(ValueError, match="does not support the blocks of Sequential"):
        enable_checkpointing(nn.Sequential(nn.Linear(2, 2)), (nn.Conv2d,))


def test_compiled_blocks_compute_the_same_under_recomputing(tiny_model, tmp_path):
    model = load_model(str(tiny_model), torch.bfloat16)
    add_lora(model.network, 2, 2.0)
    compute_lora_in_input_dtype(model.network)
    plain = gradients(model)
    kinds = model.family.blocks
    assert compile_blocks(model.network.mid_block, kinds, tmp_path, backend="eager") > 0
    enable_checkpointing(model.network, model.family.blocks)
    for ours, theirs in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_half_weights_train_an_fp32_adapter_without_fp32_activations(model):
    # Of 8 latents a side the deepest level has one: its GroupNorm normalises pairs of numbers, and
    # the gradient through a pair turns around with rounding.
    side = 2 * SIDE
    exact = gradients(model, side)
    model.to("cpu", torch.bfloat16)
    for part in lora_parameters(model.network):
        part.data = part.data.float()
    assert compute_lora_in_input_dtype(model.network) > 0
    assert model.dtype == torch.bfloat16
    assert model.network.conv_out.weight.dtype == torch.float32
    seen: set[torch.dtype] = set()

    def note(_, args, out):
        seen.update((args[0].dtype, out.dtype))

    for layer in model.network.modules():
        if isinstance(layer, LoraLayer):
            parts = [*layer.lora_A.values(), *layer.lora_B.values()]
            for part in parts:
                part.register_forward_hook(
                    lambda _, args, out: seen.update((args[0].dtype, out.dtype))
                )
    found = gradients(model, side)
    assert seen == {torch.bfloat16}
    assert {g.dtype for g in found} == {torch.float32}
    ours, theirs = (torch.cat([g.flatten() for g in group]) for group in (found, exact))
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.99


def test_channels_last_changes_the_order_of_weights_and_no_result(model):
    model.network.double()  # other kernels round otherwise, and the tiny AnimateDiff amplifies that
    plain = gradients(model)
    order_channels_last(model.network)
    weight = model.network.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    ours, theirs = (torch.cat([g.flatten() for g in group]) for group in (gradients(model), plain))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


def test_fp16_gradients_are_brought_into_range_by_powers_of_two():
    gradient = torch.tensor([3e-8, -1e-6])
    scale = gradient_scale(gradient, torch.float16)
    assert float(scale).hex().endswith("p+15") or float(torch.log2(scale)) % 1 == 0
    scaled = (gradient * scale).half().float() / scale
    torch.testing.assert_close(scaled, gradient, rtol=1e-2, atol=0)
    assert float(gradient.half()[0]) != pytest.approx(3e-8, rel=0.1)
    assert gradient_scale(gradient, torch.bfloat16) is None
    assert torch.isfinite(gradient_scale(torch.zeros(2), torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_a_frame_at_a_time_gives_the_same_pixels_and_gradients(
    sd15_checkpoint, motion_module_file, dtype
):
    model = load_model(str(sd15_checkpoint), motion_module=motion_module_file)
    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for checkpointing in (False, True):
        decoder = model.codec.for_training(model.device, dtype, checkpointing, apart=False)
        z = latents.clone().requires_grad_()
        with MemoryMeter("cpu") as meter:
            pixels = decoder.decode_images(z)
            kept = meter.now - pixels.untyped_storage().nbytes()
        pixels.square().mean().backward()
        results.append((pixels.detach(), z.grad, kept))
    (whole, whole_gradient, all_kept), (parts, parts_gradient, kept) = results
    assert whole.shape == (2, 3, 256, 256) and whole.dtype == torch.float32
    assert torch.equal(whole, parts)
    torch.testing.assert_close(parts_gradient, whole_gradient)
    assert kept < 0.05 * all_kept
    assert next(model.codec.vae.parameters()).dtype == torch.float32
    assert model.codec.vae.encoder is not None


def trained(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 40, 7)]


def test_the_offloaded_optimizer_equals_adamw_and_resumes():
    config = OptimConfig(offload=True, weight_decay=0.1)
    ours, theirs = trained(), trained()
    offloaded = build_optimizer(config, [{"params": ours, "lr": 1e-2}])
    plain = torch.optim.AdamW([{"params": theirs, "lr": 1e-2}], betas=BETAS, weight_decay=0.1)
    assert isinstance(offloaded, OffloadedAdamW)
    generator = torch.Generator().manual_seed(5)
    for step in range(6):
        for group in (*offloaded.param_groups, *plain.param_groups):
            group["lr"] = 1e-2 / (step + 1)
        for a, b in zip(ours[:2], theirs[:2], strict=True):  # the third never has a gradient
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        offloaded.step()
        plain.step()
        offloaded.zero_grad()
        if step == 2:
            state = offloaded.state_dict()
            offloaded = build_optimizer(config, [{"params": ours, "lr": 1.0}])
            offloaded.load_state_dict(state)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_eight_bit_adam_says_what_to_install_and_what_it_excludes():
    with pytest.raises(ValueError, match="pip install bitsandbytes.*optim.offload"):
        build_optimizer(OptimConfig(optimizer="adamw8bit"), [{"params": trained(), "lr": 1e-3}])
    with pytest.raises(ValueError, match="`optim.offload`=true works with .*'adamw' only"):
        OptimConfig(optimizer="adamw8bit", offload=True)


def test_an_average_may_live_elsewhere_and_comes_back():
    parameters = trained()
    ema = ParameterEma(parameters, 0.5, "cpu")
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1.0)
    ema.update()
    with ema.applied():
        for parameter, old in zip(parameters, before, strict=True):
            torch.testing.assert_close(parameter.detach(), old + 0.5)
    for parameter, old in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.detach(), old + 1.0)


def test_the_meter_follows_storages_and_not_views():
    with MemoryMeter("cpu") as meter:
        x = torch.empty(1024)
        y = x.view(32, 32).t()
        assert meter.now == 4096
        del x
        assert meter.now == 4096
        del y
        assert meter.now == 0 and meter.peak == 4096
