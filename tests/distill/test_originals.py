"""The base model's clips beside previews: made once, kept, or brought by the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.config import load_config
from trainer.data.cache import ContentCache
from trainer.distill import originals
from trainer.distill.originals import Originals
from trainer.distill.recipe import Recipe
from trainer.evaluate.generate import decode_states, generate_clips
from trainer.families import VideoModel, load_model
from trainer.lora.adapter import add_lora
from trainer.models.sound import BrokenOutputError

PROMPTS, SEED, STEPS = ["a red circle moving left", "a blue star"], 3, 2


@pytest.fixture
def model(tiny_model: Path) -> VideoModel:
    loaded = load_model(str(tiny_model))
    add_lora(loaded.network, 2, 1.0, 0)
    return loaded


def originals_of(model: VideoModel, prompts: list[str], **changes: int) -> Originals:
    size = (model.frames, model.height, model.width)
    recipe = Recipe.of(load_config(overrides={"model": str(model.path)}), model,
                       model.latent_shape(*size))  # fmt: skip
    return Originals(recipe, prompts, **{"seed": SEED, "steps": STEPS, **changes}, size=size)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of each set of clips that a model makes."""
    sets: list[list[str]] = []

    def counted(model, prompts, **options):
        sets.append(list(prompts))
        return generate_clips(model, prompts, **options)

    monkeypatch.setattr(originals, "generate_clips", counted)
    return sets


def test_they_are_the_base_models_guided_clips_and_made_once(model, made, tmp_path) -> None:
    cache = ContentCache(tmp_path)
    wanted = originals_of(model, PROMPTS)
    states = wanted.fetch(cache)
    again = originals_of(model, PROMPTS).fetch(cache)
    assert made == [PROMPTS] and torch.equal(states, again)
    guided = {"sampler": "ddim", "guidance_scale": wanted.recipe.plan.guidance_scale}
    clips = generate_clips(model, PROMPTS, steps=STEPS, seed=SEED, lora=False, **guided)
    assert torch.allclose(decode_states(model, states, PROMPTS), clips, atol=0.02)


@pytest.mark.parametrize("change", [{"steps": STEPS + 1}, {"seed": SEED + 1}])
def test_other_sampling_makes_other_clips(model, made, tmp_path, change) -> None:
    cache = ContentCache(tmp_path)
    first = originals_of(model, PROMPTS).fetch(cache)
    assert not torch.equal(originals_of(model, PROMPTS, **change).fetch(cache), first)
    assert len(made) == 2


def test_a_prompt_at_another_place_has_another_seed(model, made, tmp_path) -> None:
    cache = ContentCache(tmp_path)
    originals_of(model, PROMPTS).fetch(cache)
    originals_of(model, PROMPTS[:1]).fetch(cache)
    assert len(made) == 1
    originals_of(model, PROMPTS[::-1]).fetch(cache)
    assert len(made) == 2


def test_a_model_may_bring_them(model, made, tmp_path) -> None:
    file = model.path / originals.SHIPPED
    try:
        originals.ship([originals_of(model, PROMPTS)], file)
        made.clear()
        brought = originals_of(model, PROMPTS).fetch(ContentCache(tmp_path / "empty"))
    finally:
        file.unlink()
    assert not made and not (tmp_path / "empty").exists()
    assert torch.equal(brought, originals_of(model, PROMPTS).fetch(ContentCache(tmp_path)))


def test_broken_clips_are_an_error_and_are_not_kept(model, tmp_path) -> None:
    torch.nn.init.constant_(model.network.conv_out.weight, float("nan"))
    with pytest.raises(BrokenOutputError):
        originals_of(model, PROMPTS).fetch(ContentCache(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))
