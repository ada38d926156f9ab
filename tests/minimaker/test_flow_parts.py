"""Parts of clips that the small Wan's transformer is trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minimaker.flow_clips import FlowClips
from minimaker.flow_parts import CELLS, WINDOW, Parts
from minimaker.flow_teacher import Teacher, build_transformer
from minimaker.flow_text import kept_pieces

COUNT = 40
SAID = ["a red star", "a blue cross", "a green square"]


def clips_of(side: int = 8) -> FlowClips:
    """Three clips with ``side`` tokens a side: every latent value is clip, time and token, and so
    is every label but 0 outside of the things: 3 by 2 tokens, and in the last clip all of them.
    """
    token = torch.arange(3 * 5 * side * side).reshape(3, 5, side, side)
    latents = token.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, None].half()
    things = torch.zeros(3, 5, side, side, dtype=torch.bool)
    things[:2, :, 1:4, side - 2 :] = True
    things[2] = True
    labels = torch.where(things, 1 + token % 30, 0)
    labels = labels.repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3).to(torch.uint8)
    return FlowClips(latents.expand(-1, 16, -1, -1, -1), SAID, labels)


@pytest.mark.parametrize(("kind", "side"), [("latent", 8), ("window", WINDOW)])
def test_a_part_knows_its_clip_and_its_places(kind: str, side: int) -> None:
    part = Parts(clips_of()).draw(kind, COUNT, np.random.default_rng(1))
    assert part.x0.shape == (COUNT, 16, 1, 2 * side, 2 * side)
    assert part.labels.shape == (COUNT, 1, CELLS * side, CELLS * side)
    assert part.places.shape == (COUNT, side * side)
    tokens = part.x0[:, 0, 0, ::2, ::2].flatten(1).long()
    assert torch.equal(tokens % 320, part.places)
    names = np.array(SAID)[tokens[:, 0] // 320]
    assert all(said in ("", name) for said, name in zip(part.prompts, names, strict=True))
    labels = part.labels[:, 0, ::CELLS, ::CELLS].flatten(1)
    assert torch.equal(labels, torch.where(labels > 0, 1 + tokens % 30, 0))
    assert len({tuple(places.tolist()) for places in part.places}) >= 5


@pytest.mark.parametrize("kind", ["whole", "latent"])
def test_two_things_and_pans_are_drawn_more_often_than_one_thing(kind: str) -> None:
    said = ["a red star", "a red star and a blue cross", "a red star, the camera pans up"]
    parts = Parts(replace(clips_of(), captions=said))
    prompts = parts.draw(kind, 2000, np.random.default_rng(6)).prompts
    one, two, pan = (prompts.count(text) for text in said)
    assert 2.3 < two / one < 3.8 and 2.3 < pan / one < 3.8


def test_windows_hold_all_of_their_things() -> None:
    part = Parts(clips_of()).draw("window", COUNT, np.random.default_rng(2))
    assert ((part.labels > 0).sum((1, 2, 3)) == 6 * CELLS**2).all()
    assert set(part.prompts) == {*SAID[:2], ""}


def test_clips_of_half_the_size_have_the_places_of_every_second_token() -> None:
    parts = Parts(clips_of(side=4))
    places = parts.draw("whole", 2, np.random.default_rng(3)).places
    grid = torch.arange(320).reshape(5, 8, 8)
    assert torch.equal(places[0], grid[:, ::2, ::2].flatten())
    whole = Parts(clips_of()).draw("whole", 2, np.random.default_rng(4))
    assert torch.equal(whole.places[0], grid.flatten()) and whole.x0.shape == (2, 16, 5, 16, 16)


def test_the_transformer_takes_tokens_for_what_their_places_say(tmp_path) -> None:
    teacher = Teacher(kept_pieces(tmp_path)).eval().requires_grad_(False)
    torch.nn.init.normal_(teacher.transformer.proj_out.weight)
    plain = build_transformer().eval().requires_grad_(False)
    plain.load_state_dict(teacher.transformer.state_dict(), strict=False)
    noisy, level = torch.randn(2, 16, 5, 16, 16, generator=_seeded()), torch.tensor([0.3, 0.8])
    text = teacher.text(["a red star", ""])
    whole = teacher.velocity(noisy, level, ["a red star", ""])
    assert torch.allclose(whole, plain(noisy, 1000 * level, text).sample, atol=1e-5)
    first = teacher.placed.places = torch.arange(64)[None]
    early = teacher.velocity(noisy[:, :, :1], level, ["a red star", ""])
    assert torch.allclose(early, plain(noisy[:, :, :1], 1000 * level, text).sample, atol=1e-5)
    teacher.placed.places = first + 128
    late = teacher.velocity(noisy[:, :, :1], level, ["a red star", ""])
    assert torch.allclose(late, early, atol=1e-4)  # alone, a latent does not see its time
    teacher.placed.places = first.flip(1)
    turned = teacher.velocity(noisy[:, :, :1], level, ["a red star", ""])
    assert not torch.allclose(turned, early, atol=1e-2)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)
