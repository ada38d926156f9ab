"""Prompts are read as diffusers' pipelines read them, and pooled without what they share."""

from __future__ import annotations

import pytest
import torch

from trainer.families import load_model
from trainer.families.base import TEXTS_AT_ONCE
from trainer.families.text import ClipText, unit_vectors
from trainer.models.clip import clip_tokenizer

PROMPTS = ["a red star growing", "a blue disc", ""]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def reader(sd15_parts):
    return ClipText(sd15_parts.text_encoder, clip_tokenizer())


def test_states_are_those_of_diffusers_pipeline(sd15_parts, reader):
    from diffusers import TextToVideoSDPipeline

    pipeline = TextToVideoSDPipeline(
        vae=None, text_encoder=sd15_parts.text_encoder, tokenizer=reader.tokenizer,
        unet=None, scheduler=None,
    )  # fmt: skip
    long = "a photo of a very long street " * 30
    for prompt in (*PROMPTS, long):
        wanted, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)
        assert torch.equal(reader.encode([prompt]), wanted)
    assert reader.encode(PROMPTS).shape == (3, reader.max_tokens, reader.width)


def test_tokens_are_counted_past_the_end_of_what_is_read(reader):
    assert reader.tokens("a photo of a cat")[0] == 49406
    assert reader.count("a photo of a cat") == 7
    assert reader.count("cat " * 200) == 202 > reader.max_tokens == 77


def test_a_model_remembers_what_it_has_read(model, monkeypatch):
    many = [f"prompt {number}" for number in range(TEXTS_AT_ONCE + 3)]
    model._text_cache.clear()
    asked = []
    encode = model.text.encode
    monkeypatch.setattr(model.text, "encode", lambda part: asked.append(list(part)) or encode(part))
    states = model.encode_text([*many, many[0]])
    assert [len(part) for part in asked] == [TEXTS_AT_ONCE, 3]
    assert torch.equal(states[0], states[-1])
    torch.testing.assert_close(states[5:6], encode([many[5]]))
    assert torch.equal(model.encode_text(many[4:6]), states[4:6]) and len(asked) == 2


def test_a_prompt_is_one_unit_vector_without_what_all_share(model):
    found = model.pooled_text(PROMPTS)
    states = model.encode_text(PROMPTS).mean(dim=1)
    wanted = torch.nn.functional.normalize(states[:2] - states[2:], dim=-1)
    torch.testing.assert_close(found[:2], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1)[:2], torch.ones(2))
    assert found[2].abs().max() < 1e-3, "the empty prompt says nothing"


def test_vectors_of_half_precision_states_are_computed_in_fp32(reader):
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).half()
    vectors = unit_vectors(reader, states, states[:1] * 0)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, unit_vectors(reader, states.float(), states[:1] * 0))
