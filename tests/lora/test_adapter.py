"""The adapter covers what the official LoRAs cover, starts as the base, and switches off to be the
base.
"""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from official import MODULES, full_size, official
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.lora.adapter import (
    adapter_disabled,
    add_lora,
    apply_lora,
    load_lora_state,
    lora_parameters,
    lora_state,
)
from trainer.lora.pairs import LoraError, LoraPair, base_modules, lora_targets


def tiny(seed: int = 0, width: int = 16) -> UNet3DConditionModel:
    torch.manual_seed(seed)
    return (
        UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=width,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        .eval()
        .requires_grad_(False)
    )


def tiny_motion(seed: int = 0) -> UNetMotionModel:
    torch.manual_seed(seed)
    return (
        UNetMotionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            cross_attention_dim=16,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            norm_num_groups=8,
        )
        .eval()
        .requires_grad_(False)
    )


def eps(unet: nn.Module, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 2, 8, 8, generator=generator)
    # UNet3D repeats the text for its 2 frames itself, UNetMotionModel wants a row a frame.
    rows = 2 if isinstance(unet, UNetMotionModel) else 1
    text = torch.randn(1, 3, 16, generator=generator).expand(rows, 3, 16)
    with torch.set_grad_enabled(grad):
        return unet(latents, torch.tensor([500]), text).sample


def randomise(unet: nn.Module, seed: int = 3, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("name", "modules"), MODULES.items())
def test_full_size_lora_has_the_paths_and_shapes_of_the_official_one(
    name: str, modules: int
) -> None:
    with torch.device("meta"):
        unet = full_size(name)
        before = lora_targets(unet)
        add_lora(unet, rank=64, alpha=64)
    state = lora_state(unet)
    assert len(state) == modules
    assert sorted(state) == before
    got = {path: (tuple(p.down.shape), tuple(p.up.shape)) for path, p in state.items()}
    assert got == official(name)


@pytest.mark.parametrize("make", [tiny, tiny_motion])
def test_fresh_adapter_equals_the_base_and_switched_off_equals_it_exactly(make) -> None:
    unet = make()
    base = eps(unet)
    add_lora(unet, rank=4, alpha=4)
    assert torch.equal(eps(unet), base)
    randomise(unet)
    assert not torch.allclose(eps(unet), base, atol=1e-4)
    student = eps(unet)
    with adapter_disabled(unet):
        assert torch.equal(eps(unet), base)
        with adapter_disabled(unet):
            assert torch.equal(eps(unet), base)
        assert torch.equal(eps(unet), base)
    assert torch.equal(eps(unet), student)


def test_no_conv3d_and_no_input_output_or_time_module_is_adapted() -> None:
    unet = tiny()
    add_lora(unet, rank=2, alpha=2)
    wrapped = {name: m for name, m in unet.named_modules() if isinstance(m, LoraLayer)}
    assert sorted(wrapped) == lora_targets(unet)
    assert {type(m.get_base_layer()) for m in wrapped.values()} <= {nn.Conv2d} | linear_types(unet)
    assert not [n for n in wrapped if n.startswith(("conv_in", "conv_out", "time_embedding"))]
    assert any("temp_convs" in n for n, m in unet.named_modules() if isinstance(m, nn.Conv3d))


def linear_types(unet: nn.Module) -> set[type]:
    return {type(m) for m in base_modules(unet).values() if isinstance(m, nn.Linear)}


def test_only_the_adapter_trains_and_gradients_survive_a_teacher_pass_in_between() -> None:
    unet = tiny()
    add_lora(unet, rank=2, alpha=2)
    trainable = {id(p) for p in unet.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in lora_parameters(unet)}
    student = eps(unet, grad=True)
    with adapter_disabled(unet):
        teacher = eps(unet)
    (student - teacher - 1).square().mean().backward()
    used = [p for p in lora_parameters(unet) if p.grad is not None]
    assert len(used) == len(lora_parameters(unet))
    assert any(p.grad.abs().sum() > 0 for p in used)
    assert all(p.grad is None for p in unet.parameters() if id(p) not in trainable)


def test_adapter_disabled_restores_frozen_flags_and_survives_an_error() -> None:
    unet = tiny()
    add_lora(unet, rank=2, alpha=2)
    randomise(unet)
    frozen = lora_parameters(unet)[0].requires_grad_(False)
    student = eps(unet)
    with pytest.raises(RuntimeError, match="inside"), adapter_disabled(unet):
        raise RuntimeError("inside")
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in lora_parameters(unet)[1:])
    assert torch.equal(eps(unet), student)


def test_start_depends_on_the_seed_alone_and_global_state_is_untouched() -> None:
    first = tiny()
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    add_lora(first, rank=2, alpha=2, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    add_lora(second, rank=2, alpha=2, seed=5)
    add_lora(third, rank=2, alpha=2, seed=6)
    a, b, c = (lora_state(unet) for unet in (first, second, third))
    assert all(torch.equal(a[path].down, b[path].down) for path in a)
    assert not any(torch.equal(a[path].down, c[path].down) for path in a)
    assert all(pair.up.abs().max() == 0 for pair in a.values())
    bound = {path: pair.down[0].numel() ** -0.5 for path, pair in a.items()}
    assert all(0.5 * bound[p] < pair.down.abs().max() <= bound[p] for p, pair in a.items())


def test_bf16_base_keeps_an_fp32_adapter_and_its_own_dtype() -> None:
    unet = tiny().to(torch.bfloat16)
    add_lora(unet, rank=2, alpha=2)
    assert {p.dtype for p in lora_parameters(unet)} == {torch.float32}
    assert not any(module.training for module in unet.modules())
    assert unet.dtype == torch.bfloat16
    sample = torch.zeros(1, 4, 2, 8, 8, dtype=torch.bfloat16)
    text = torch.zeros(1, 3, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        assert unet(sample, torch.tensor([500]), text).sample.dtype == torch.bfloat16


@pytest.mark.parametrize("make", [tiny, tiny_motion])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_apply_equals_peft_merge_bit_for_bit_and_undo_is_exact(make, strength: float) -> None:
    unet = make()
    add_lora(unet, rank=3, alpha=6)
    randomise(unet)
    pairs = lora_state(unet)
    for layer in unet.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(strength)
            layer.merge()
    merged = {path: module.weight.clone() for path, module in base_modules(unet).items()}

    plain = make()
    before = copy.deepcopy(plain.state_dict())
    undo = apply_lora(plain, pairs, strength)
    after = {path: module.weight for path, module in base_modules(plain).items()}
    assert all(torch.equal(after[path], merged[path]) for path in merged)
    assert all(not torch.equal(after[path], before[f"{path}.weight"]) for path in pairs)
    undo()
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    with torch.no_grad():
        plain.conv_in.weight.add_(1)
    undo()
    assert not torch.equal(plain.conv_in.weight, before["conv_in.weight"])


def test_merged_weights_give_the_output_of_the_running_adapter() -> None:
    unet = tiny()
    add_lora(unet, rank=3, alpha=6)
    randomise(unet)
    plain = tiny()
    apply_lora(plain, lora_state(unet))
    assert torch.allclose(eps(plain), eps(unet), atol=1e-5)


def test_apply_refuses_a_misfit_before_changing_anything() -> None:
    unet = tiny()
    add_lora(unet, rank=2, alpha=2)
    randomise(unet)
    pairs = lora_state(unet)
    pairs["mid_block.nothing.here"] = LoraPair(torch.ones(2, 4), torch.ones(4, 2), 2.0)
    plain = tiny()
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(LoraError, match=r"1 are unknown to the model \(mid_block.nothing.here\)"):
        apply_lora(plain, pairs)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    with pytest.raises(LoraError, match="strength"):
        apply_lora(plain, lora_state(unet), float("nan"))


def test_state_loads_back_exactly_with_its_alpha() -> None:
    first, second = tiny(), tiny()
    add_lora(first, rank=3, alpha=6)
    randomise(first)
    add_lora(second, rank=3, alpha=3)
    load_lora_state(second, lora_state(first))
    assert torch.equal(eps(second), eps(first))
    assert {pair.alpha for pair in lora_state(second).values()} == {6.0}
    kept = lora_state(first)
    with torch.no_grad():
        lora_parameters(first)[0].add_(1)
    path = min(kept)
    assert not torch.equal(lora_state(first)[path].down, kept[path].down)


def test_loading_is_strict_and_changes_nothing_when_refused() -> None:
    unet, other = tiny(), tiny()
    add_lora(unet, rank=3, alpha=3)
    add_lora(other, rank=2, alpha=2)
    before = lora_state(unet)
    pairs = dict(lora_state(unet, "default"))
    part = {path: pairs[path] for path in sorted(pairs)[:2]}
    with pytest.raises(LoraError, match="have no weights in the LoRA"):
        load_lora_state(unet, part)
    with pytest.raises(LoraError, match=r"rank 2, the model's adapter 3; add_lora\(rank=2\)"):
        load_lora_state(unet, lora_state(other))
    one = {min(part): LoraPair(part[min(part)].down + 1, part[min(part)].up, 3.0)}
    assert all(torch.equal(lora_state(unet)[p].down, before[p].down) for p in before)
    load_lora_state(unet, one, strict=False)
    assert torch.equal(lora_state(unet)[min(part)].down, one[min(part)].down)
    with pytest.raises(LoraError, match="carries no LoRA"):
        load_lora_state(tiny(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0, "alpha": 1}, "`rank`=0; allowed is 1 or more"),
        ({"rank": 2, "alpha": 0}, "`alpha`=0; a positive number"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(LoraError, match=message):
        add_lora(tiny(), **arguments)


def test_a_second_adapter_and_a_missing_one_are_refused() -> None:
    unet = tiny()
    with pytest.raises(LoraError, match="call add_lora first"):
        lora_state(unet)
    add_lora(unet, rank=2, alpha=2)
    with pytest.raises(LoraError, match="carries a LoRA already"):
        add_lora(unet, rank=2, alpha=2)
    with pytest.raises(LoraError, match="no Linear or Conv2d"):
        add_lora(nn.Sequential(nn.Conv3d(1, 1, 1)), rank=2, alpha=2)
