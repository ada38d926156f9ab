"""Blocks that wait in main memory: the same numbers, and what stays on the card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import wan_files
from fake_card import CARD, CardTensor, FakeCard
from torch import Tensor, nn

from trainer.evaluate.bench import merged
from trainer.evaluate.generate import generate_clips
from trainer.families import family_named, load_model
from trainer.families.base import move
from trainer.lora.adapter import adapter_disabled, add_lora, lora_parameters
from trainer.lora.export import export_file
from trainer.lora.formats import LoraFile, read_lora
from trainer.lora.pairs import LoraPair, lora_targets
from trainer.lora.whole import add_whole
from trainer.models.block_swap import BlockSwap, swapped_blocks, swapped_bytes
from trainer.models.checkpointing import enable_checkpointing
from trainer.models.wan import build_wan, read_wan

FAMILY = family_named("wan")
LAYERS = 5


@pytest.fixture
def card():
    with FakeCard() as found:
        yield found


def network_of(form: str, tmp_path) -> nn.Module:
    if form == "fp32":
        return wan_files.build_transformer(LAYERS)
    state = wan_files.original(wan_files.build_transformer(LAYERS).state_dict())
    path = wan_files.save_half(wan_files.scaled_fp8(state), tmp_path / "fp8.safetensors")
    return build_wan(read_wan(path))


def prepared(network: nn.Module, count: int, device: Any = "cpu") -> BlockSwap:
    """In the order of a session."""
    swap = BlockSwap(swapped_blocks(network, FAMILY.blocks, count), FAMILY.exact)
    move(network, device, None, FAMILY.exact)
    add_lora(network, 4, 4, seed=1)
    with torch.no_grad():
        for index, parameter in enumerate(lora_parameters(network)):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.copy_(0.1 * drawn)
    network.to(device)
    swap.start(torch.device(device))
    enable_checkpointing(network, FAMILY.blocks)
    return swap


def passes(network: nn.Module, device: Any = "cpu") -> list[Tensor]:
    """Teacher, student and its gradients, then all again after a change of the LoRA."""
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    text = torch.linspace(-1, 1, 8 * wan_files.TEXT_WIDTH).reshape(1, 8, -1).to(device)
    time = torch.tensor([500.0]).to(device)
    found = []
    for _ in range(2):
        with torch.no_grad(), adapter_disabled(network):
            found.append(FAMILY.denoise(network, latents, time, text))
        student = FAMILY.denoise(network, latents, time, text)
        student.square().sum().backward()
        found += [student.detach(), *(p.grad.clone() for p in lora_parameters(network))]
        with torch.no_grad():
            for parameter in lora_parameters(network):
                parameter -= 1e-3 * parameter.grad
    return [value.cpu() for value in found]


@pytest.mark.parametrize("form", ["fp32", "fp8"])
@pytest.mark.parametrize("count", [1, 2, 3, LAYERS])
def test_outputs_and_gradients_are_bit_equal(form, count, tmp_path):
    plain, swapped = network_of(form, tmp_path), network_of(form, tmp_path)
    prepared(plain, 0)
    swap = prepared(swapped, count)
    assert len(swap.hosts) == count and len(swap.places) == min(2, count)
    for ours, theirs in zip(passes(swapped), passes(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_norms_that_a_step_lora_changes_are_the_students_and_not_the_teachers(tmp_path):
    plain, swapped = network_of("fp32", tmp_path), network_of("fp32", tmp_path)
    for network, count in ((plain, 0), (swapped, LAYERS)):
        prepared(network, count)
        norms = [name for name, _ in network.named_parameters() if "norm_q" in name]
        add_whole(network, {name: torch.full((128,), 2.0) for name in norms})
    teacher, student = passes(plain)[:2]
    assert (teacher - student).abs().max() > 0.1
    for ours, theirs in zip(passes(swapped)[:2], (teacher, student), strict=True):
        assert torch.equal(ours, theirs)


def clips_of(model: Any, lora: LoraFile) -> list[Tensor]:
    """Of the base model, of the student, and of the base model again."""
    found = []
    for file in (None, lora, None):
        with merged(model, file):
            made = {"steps": 2, "size": (5, 32, 32)}
            found.append(generate_clips(model, ["a red star"], sampler="lcm", **made))
    return found


@pytest.mark.parametrize("form", ["fp16", "fp8"])
@pytest.mark.parametrize("count", [1, 3])
def test_clips_are_bit_equal_with_the_lora_and_after_it(form, count, tmp_path):
    """A LoRA that is merged goes into the weights that wait, and out of them again."""
    file = next((wan_files.save_comfyui(tmp_path) / "diffusion_models").iterdir())
    state = wan_files.original(wan_files.build_transformer(LAYERS).state_dict())
    wan_files.save_half(wan_files.scaled_fp8(state) if form == "fp8" else state, file)
    plain, swapped = load_model(str(file)), load_model(str(file))
    generator = torch.Generator().manual_seed(0)
    pairs = {
        path: LoraPair(*(0.2 * torch.randn(size, generator=generator) for size in sizes), 2.0)
        for path in lora_targets(plain.network)
        for wide, narrow in [plain.network.get_submodule(path).weight.shape]
        for sizes in [((2, narrow), (wide, 2))]
    }
    export_file(pairs, tmp_path / "ink.safetensors", {})
    lora = read_lora(tmp_path / "ink.safetensors", plain.network)
    chosen = swapped_blocks(swapped.network, FAMILY.blocks, count)
    swapped.swap = BlockSwap(chosen, FAMILY.exact)
    swapped.swap.start(torch.device("cpu"))
    ours, theirs = clips_of(swapped, lora), clips_of(plain, lora)
    assert not torch.equal(theirs[0], theirs[1]) and torch.equal(theirs[0], theirs[2])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_block_whose_weights_are_gone_before_its_gradient_is_no_silent_fault(tmp_path):
    network = network_of("fp32", tmp_path)
    swap = BlockSwap(swapped_blocks(network, FAMILY.blocks, LAYERS), FAMILY.exact)
    add_lora(network, 4, 4)
    swap.start(torch.device("cpu"))  # and nothing is recomputed
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        passes(network)


@pytest.mark.parametrize("form", ["fp32", "fp8"])
def test_on_a_card_the_numbers_are_those_of_the_cpu(form, tmp_path, card):
    plain, swapped = network_of(form, tmp_path), network_of(form, tmp_path)
    prepared(plain, 0)
    swap = prepared(swapped, 3, CARD)
    assert all(isinstance(place, CardTensor) for place in swap.places)
    assert not any(isinstance(host, CardTensor) for host in swap.hosts)
    for ours, theirs in zip(passes(swapped, CARD), passes(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_swapped_network_leaves_the_card_and_comes_back(tmp_path, card):
    """As it does while prompts are read; blocks that wait never come along."""
    network, plain = network_of("fp8", tmp_path), network_of("fp8", tmp_path)
    swap = prepared(network, 3, CARD)
    prepared(plain, 3, CARD)
    network.to("cpu")
    assert not any(isinstance(value, CardTensor) for value in network.parameters())
    network.to(CARD)
    waiting = [weight.value for weights in swap.weights for weight in weights]
    assert waiting and not any(isinstance(value, CardTensor) for value in waiting)
    on_card = sum(isinstance(value, CardTensor) for value in network.parameters())
    assert on_card + len(waiting) == len(list(network.parameters()))
    for ours, theirs in zip(passes(network, CARD), passes(plain, CARD), strict=True):
        assert torch.equal(ours, theirs)


def test_what_waits_takes_the_type_of_the_network(tmp_path):
    network = network_of("fp32", tmp_path)
    swap = BlockSwap(swapped_blocks(network, FAMILY.blocks, 2), FAMILY.exact)
    move(network, "cpu", torch.bfloat16, FAMILY.exact)
    assert {w.value.dtype for weights in swap.weights for w in weights} == {torch.bfloat16}
    assert network.blocks[0].scale_shift_table.dtype == torch.float32


def test_swapped_blocks_are_spread(tmp_path):
    network = network_of("fp32", tmp_path)
    every = list(network.blocks)
    assert swapped_blocks(network, FAMILY.blocks, 2) == [every[0], every[2]]
    assert swapped_blocks(network, FAMILY.blocks, LAYERS) == every
    assert swapped_blocks(network, FAMILY.blocks, 0) == []
    with pytest.raises(ValueError, match=r"`hardware.blocks_to_swap`=6 is more than the 5 blocks"):
        swapped_blocks(network, FAMILY.blocks, 6)


def test_its_bytes_are_those_of_the_blocks(tmp_path):
    network = network_of("fp32", tmp_path)
    chosen = swapped_blocks(network, FAMILY.blocks, 3)
    exact = sum(
        value.numel() * 4 for name, value in chosen[0].named_parameters() if FAMILY.exact(name)
    )
    whole = sum(value.numel() * 4 for value in chosen[0].parameters())
    waits, on_card = swapped_bytes(chosen, FAMILY.exact)
    assert exact and waits == pytest.approx(3 * (whole - exact), rel=0.02)
    assert on_card == pytest.approx(2 * (whole - exact), rel=0.02)
