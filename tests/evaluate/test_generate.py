from __future__ import annotations

import pytest
import torch

from trainer.evaluate.generate import generate_clips
from trainer.families import load_model
from trainer.lora.adapter import add_lora, lora_parameters

PROMPTS = ["a red star growing", "a blue square circling", "a green cross moving up"]


@pytest.fixture(scope="module")
def model(untrained_folder):
    return load_model(str(untrained_folder))


def test_a_clip_is_the_same_in_every_batch(model):
    told: list[tuple[int, int]] = []
    batched = generate_clips(model, PROMPTS, steps=2, seed=7, batch_size=2, progress=told_to(told))
    alone = generate_clips(model, PROMPTS[2:], steps=2, seed=9)
    assert batched.shape == (3, 3, 8, 64, 64) and batched.dtype == torch.float32
    assert batched.min() >= -1 and batched.max() <= 1 and batched.std() > 0.01
    torch.testing.assert_close(batched[2:], alone, atol=2e-4, rtol=0)
    assert told == [(2, 3), (3, 3)]


def told_to(told: list[tuple[int, int]]):
    return lambda done, total: told.append((done, total))


def test_prompt_seed_steps_and_guidance_all_matter(model):
    def make(prompt: str = PROMPTS[0], **options) -> torch.Tensor:
        return generate_clips(model, [prompt], **{"sampler": "ddim", "steps": 2, **options})

    base = make()
    others = [
        make(PROMPTS[1]),
        make(seed=1),
        make(steps=3),
        make(guidance_scale=4.0),
        make(guidance_scale=4.0, negative_prompt="a blue square"),
        make(sampler="lcm"),
    ]
    for index, other in enumerate([base, *others]):
        for later in others[index:]:
            assert (other - later).abs().max() > 1e-4
    torch.testing.assert_close(base, make(guidance_scale=1.0, negative_prompt="a square"))


def test_size_can_be_chosen_and_is_checked(model):
    clips = generate_clips(model, PROMPTS[:1], steps=1, size=(16, 32, 48))
    assert clips.shape == (1, 3, 16, 32, 48)
    with pytest.raises(ValueError, match="`frames`=9 is not supported"):
        generate_clips(model, PROMPTS[:1], steps=1, size=(9, 64, 64))


def test_without_lora_an_adapter_in_training_is_off(untrained_folder):
    model = load_model(str(untrained_folder))
    before = generate_clips(model, PROMPTS[:1], steps=1)
    add_lora(model.network, rank=2, alpha=2)
    for parameter in lora_parameters(model.network)[1::2]:
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    student = generate_clips(model, PROMPTS[:1], steps=1)
    teacher = generate_clips(model, PROMPTS[:1], steps=1, lora=False)
    torch.testing.assert_close(teacher, before)
    assert (student - teacher).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "`sampler`='euler' is not known; use lcm, ddim"),
        ({"prompts": []}, "0 prompts"),
        ({"batch_size": 0}, "`batch_size`=0"),
    ],
)
def test_bad_input_is_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate_clips(model, **{"prompts": PROMPTS, "steps": 1, **options})
