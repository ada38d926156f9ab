"""The pretended card refuses what a card refuses, and counts what makes the host wait."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fake_card import CARD, CardError, CardTensor, FakeCard
from torch import nn


@pytest.mark.parametrize(
    "mixed",
    [
        lambda card, host: card + host,
        lambda card, host: host.add_(card),
        lambda card, host: torch.cat([card, host]),
        lambda card, host: card.index_select(0, host.long()),
        lambda card, host: host[card.long()],
        lambda card, host: host * card.sum(),
        lambda card, host: nn.functional.linear(card, host[None]),
    ],
)
def test_tensors_of_two_devices_are_refused(card, mixed):
    with pytest.raises(CardError, match="same device"):
        mixed(torch.ones(3, device="cuda"), torch.ones(3))


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray])
def test_numpy_is_refused_before_a_copy_to_the_host(card, read):
    with pytest.raises(CardError, match="numpy"):
        read(torch.ones(3, device="cuda"))
    assert read(torch.ones(3, device="cuda").cpu()).sum() == 3


def test_a_generator_of_the_host_draws_nothing_on_the_card(card):
    with pytest.raises(CardError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_what_a_card_allows_is_allowed(card):
    x = torch.arange(4.0).to("cuda")
    assert (x + torch.tensor(1.0)).device == CARD, "a number from the host"
    assert x[torch.tensor([0, 2])].device == CARD, "indices from the host"
    x[1:3] = torch.tensor([5.0, 6.0]).to(x)
    assert x.cpu().tolist() == [0, 5, 6, 3]
    assert copy.deepcopy(nn.Linear(2, 2).to("cuda")).weight.device == CARD


@pytest.mark.parametrize(
    ("wait", "kind"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.any()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "copy to host"),
        (lambda x: x.to("cpu", torch.float16), "copy to host"),
        (lambda x: torch.empty(3).copy_(x), "copy to host"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index by mask"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_every_wait_is_counted_with_its_kind(card, wait, kind):
    x = torch.ones(3, device="cuda")
    assert not card.waits
    wait(x)
    assert set(card.waits) == {("tests", kind)}


def test_values_gradients_and_optimizer_steps_are_those_of_the_cpu():
    def trained(device: str) -> torch.Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)).to(device)
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.linspace(-1, 1, 6).reshape(2, 3).to(device)).square().sum().backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in parameters]).cpu()

    on_cpu = trained("cpu")
    with FakeCard():
        on_card = trained("cuda")
    assert torch.equal(on_cpu, on_card)


def test_a_network_keeps_its_parameters_on_the_way_there_and_back(card):
    network = nn.Linear(2, 2)
    weight = network.weight
    network.to("cuda")
    assert isinstance(weight, CardTensor) and isinstance(weight, nn.Parameter)
    network.to("cpu")
    assert not isinstance(weight, CardTensor) and network.weight is weight


def test_nothing_of_the_card_is_left_behind():
    with FakeCard():
        assert torch.cuda.is_available()
    assert FakeCard.current is None
    assert not isinstance(torch.zeros(1), CardTensor)


def test_a_second_gradient_stays_on_the_card(card):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(4, 1, 3))
    network.to("cuda")
    x = torch.ones(2, 3, 8, 8, device="cuda").requires_grad_()
    (first,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    first.square().sum().backward()
    assert next(network.parameters()).grad.device == CARD
