"""Tokens that pass by the middle blocks of a small Wan in training."""

from __future__ import annotations

import pytest
import torch

from minimaker.flow_teacher import build_transformer
from minimaker.route import Route

FIRST, LAST = 2, 4


@pytest.fixture
def parts() -> tuple[torch.nn.Module, Route, list[tuple[int, ...]]]:
    """A transformer with random output, its route, and the shapes that each block is given."""
    transformer = build_transformer().eval().requires_grad_(False)
    torch.nn.init.normal_(transformer.proj_out.weight)
    route = Route(transformer.blocks, FIRST, LAST)
    shapes: list[tuple[int, ...]] = []
    for block in transformer.blocks:
        block.norm1.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    return transformer, route, shapes


def velocity(transformer: torch.nn.Module) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    noisy, text = (torch.randn(shape, generator=noise) for shape in ((2, 16, 3, 8, 8), (2, 5, 128)))
    return transformer(noisy, torch.tensor([300.0, 800.0]), text).sample


def test_only_kept_tokens_go_through_the_middle(parts) -> None:
    transformer, route, shapes = parts
    whole = velocity(transformer)
    route.draw(48, 0.25, torch.Generator().manual_seed(2))
    shapes.clear()
    part = velocity(transformer)
    assert [shape[1] for shape in shapes] == [48, 48, 12, 12, 12, 48, 48, 48]
    assert part.shape == whole.shape and not torch.allclose(part, whole, atol=1e-3)


def test_all_tokens_kept_make_what_no_route_makes(parts) -> None:
    transformer, route, _ = parts
    whole = velocity(transformer)
    route.draw(48, 1.0, torch.Generator().manual_seed(3))
    assert torch.allclose(velocity(transformer), whole, atol=1e-5)


def test_a_kept_token_keeps_its_place(parts) -> None:
    """What the middle makes of kept tokens is found where they were, others are as before it."""
    transformer, route, _ = parts
    route.draw(48, 0.5, torch.Generator().manual_seed(4))
    seen: dict[str, torch.Tensor] = {}
    transformer.blocks[FIRST].register_forward_pre_hook(
        lambda _, given: seen.update(kept=given[0]), prepend=False
    )
    before: list[torch.Tensor] = []
    transformer.blocks[FIRST - 1].register_forward_hook(lambda *given: before.append(given[-1]))
    after: list[torch.Tensor] = []
    transformer.blocks[LAST + 1].register_forward_pre_hook(lambda _, given: after.append(given[0]))
    velocity(transformer)
    assert torch.equal(seen["kept"], before[0][:, route.kept])
    same = (after[0] == before[0]).all(dim=-1).all(dim=0)
    assert not same[route.kept].any() and same.sum() == 24
