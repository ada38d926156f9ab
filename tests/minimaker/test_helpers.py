"""Helpers of a training stage: real processes that add gradients."""

from __future__ import annotations

import json
import time

import line
import pytest
import torch

from minimaker.helpers import FAR, Helpers
from minimaker.stage import run_stage

PATIENCE = 120.0


def waited(helpers: Helpers, loss_of):
    """``loss_of`` that begins when a helper has added something."""

    def loss(step):
        end = time.monotonic() + PATIENCE
        while not helpers._shared.added.item() and time.monotonic() < end:
            time.sleep(0.01)
        return loss_of(step)

    return loss


def test_a_stage_learns_with_what_helpers_add(tmp_path):
    module, loss_of = line.build()
    helpers = Helpers(2, line.build)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    given = {"steps": 61, "work": tmp_path, "lr": 0.1, "helpers": helpers}
    run_stage("line", module, optimizer, waited(helpers, loss_of), **given)
    lines = (tmp_path / "line.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(text)["helped"] >= 1 for text in lines] == [True] * 4
    assert module.weight.item() == pytest.approx(2, abs=0.2)
    assert helpers._running == []


def test_a_step_takes_the_mean_of_its_own_and_all_added_gradients():
    module, loss_of = line.build()
    helpers = Helpers(0, line.build)
    helpers.start(module, 0)
    other, loss_there = line.build()
    gradients = []
    for step in (FAR, FAR + 1):
        other.zero_grad()
        loss_there(step)[0].backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in other.parameters()]))
        helpers._shared.gradients.add_(gradients[-1])
        helpers._shared.added.add_(1)
    loss_of(0)[0].backward()
    own = torch.cat([weight.grad.flatten() for weight in module.parameters()])
    mean = (own + sum(gradients)) / 3
    assert helpers.collect(module) == 2
    found = torch.cat([weight.grad.flatten() for weight in module.parameters()])
    torch.testing.assert_close(found, mean)
    assert helpers.collect(module) == 0
    torch.testing.assert_close(module.weight.grad.flatten(), mean[:1])


def test_a_helper_that_fails_ends_the_stage_and_the_others(tmp_path):
    module, loss_of = line.build()
    helpers = Helpers(1, line.fail)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def loss(step):
        helpers._running[0].join(PATIENCE)
        return loss_of(step)

    with pytest.raises(RuntimeError, match="A helper has ended"):
        run_stage("line", module, optimizer, loss, steps=2, work=tmp_path, lr=0.1, helpers=helpers)
    assert helpers._running == []
