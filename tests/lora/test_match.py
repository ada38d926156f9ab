"""A LoRA of another family is refused as a whole, and the error says which base it wants."""

from __future__ import annotations

import pytest
import torch

from trainer.families import FAMILIES
from trainer.families.unet import IMAGE_MODELS
from trainer.lora.match import fit_pairs, guess_base, match, resolve_names
from trainer.lora.pairs import LoraError, LoraPair, kohya_name

TEMPORAL = {
    "modelscope": "temp_attentions",
    "animatediff": "motion_modules",
    "mini": "temp_attentions",
}


def shapes_of(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Three covered modules and one uncovered, shaped like the family's own."""
    return {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, width),
        "down_blocks.0.resnets.0.conv1": (32, 32, 3, 3),
        f"down_blocks.0.{TEMPORAL[name]}.0.transformer_blocks.0.attn2.to_k": (32, 32),
        "conv_in": (32, 4, 3, 3),
    }


def lora_for(shapes: dict[str, tuple[int, ...]], rank: int = 2) -> dict[str, LoraPair]:
    return {
        path: LoraPair(
            torch.ones(rank, *shape[1:]),
            torch.ones(shape[0], rank, *((1, 1) if len(shape) == 4 else ())),
            float(rank),
        )
        for path, shape in shapes.items()
        if path != "conv_in"
    }


MODELSCOPE = shapes_of("modelscope", 1024)
ANIMATEDIFF = shapes_of("animatediff", 768)
MINI = shapes_of("mini", 64)


def test_a_fitting_lora_is_complete_and_conv_in_is_not_missed() -> None:
    report = match(lora_for(MODELSCOPE), MODELSCOPE)
    assert report.complete
    assert set(report.matched) == set(MODELSCOPE) - {"conv_in"}
    assert (report.missing, report.unexpected, report.wrong_shape) == ((), (), {})


def test_kohya_names_match_the_same() -> None:
    underscored = {kohya_name(path): pair for path, pair in lora_for(MODELSCOPE).items()}
    assert match(underscored, MODELSCOPE).complete
    assert set(fit_pairs(underscored, MODELSCOPE)) == set(MODELSCOPE) - {"conv_in"}


def test_misfits_are_sorted_into_their_kinds() -> None:
    report = match(lora_for(ANIMATEDIFF), MODELSCOPE)
    assert report.matched == ("down_blocks.0.resnets.0.conv1",)
    assert report.unexpected == ("down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_k",)
    assert list(report.wrong_shape.values()) == ["(model (32, 1024), LoRA (32, 768))"]
    assert len(report.missing) == 1
    assert not report.fits


@pytest.mark.parametrize(
    ("lora", "model", "wants", "loaded"),
    [
        (ANIMATEDIFF, MODELSCOPE, "AnimateDiff on Stable Diffusion 1.5", "ModelScope"),
        (MODELSCOPE, ANIMATEDIFF, "ModelScope text-to-video", "AnimateDiff"),
        (MODELSCOPE, MINI, "ModelScope text-to-video", "the built-in mini model"),
        (MINI, MODELSCOPE, "the built-in mini model", "ModelScope text-to-video"),
    ],
)
def test_the_error_names_both_bases(lora, model, wants: str, loaded: str) -> None:
    for pairs in (lora_for(lora), {kohya_name(p): pair for p, pair in lora_for(lora).items()}):
        with pytest.raises(LoraError) as caught:
            fit_pairs(pairs, model)
        wanted, got = str(caught.value).split(", loaded is ")
        assert wants in wanted
        assert loaded in got
        assert "layers" not in got and "down_blocks" not in got


def test_the_error_quotes_the_metadata() -> None:
    with pytest.raises(LoraError, match="base model 'ZeroScope v2'"):
        fit_pairs(lora_for(MODELSCOPE), MINI, metadata={"mcm.base_model": "ZeroScope v2"})


def test_one_left_over_key_is_enough_to_refuse() -> None:
    pairs = lora_for(MODELSCOPE)
    pairs["lora_unet_left_over"] = LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    with pytest.raises(LoraError, match=r"3 of its layers fit; 1 are unknown .*unet_left_over"):
        fit_pairs(pairs, MODELSCOPE)


def test_a_partial_lora_fits_but_is_not_complete() -> None:
    pairs = lora_for(MODELSCOPE)
    del pairs["down_blocks.0.resnets.0.conv1"]
    assert match(pairs, MODELSCOPE).fits
    assert set(fit_pairs(pairs, MODELSCOPE)) == set(pairs)
    with pytest.raises(LoraError, match="1 of the model's have no weights in the LoRA"):
        fit_pairs(pairs, MODELSCOPE, complete=True)
    with pytest.raises(LoraError, match="made for an unknown base model, loaded is ModelScope"):
        fit_pairs({}, MODELSCOPE)


def test_a_path_and_its_underscore_name_together_are_refused() -> None:
    pairs = lora_for(MODELSCOPE)
    path = "down_blocks.0.resnets.0.conv1"
    pairs[kohya_name(path)] = pairs[path]
    with pytest.raises(LoraError, match="Two sets of weights"):
        resolve_names(pairs, MODELSCOPE)


@pytest.mark.parametrize(
    ("base", "markers"),
    [(base, family.layers.markers) for family in FAMILIES for base in family.bases]
    + [(base, ()) for base in IMAGE_MODELS],
    ids=lambda value: getattr(value, "name", "with" if value else "without"),
)
def test_every_base_is_recognised_by_paths_and_by_underscore_names(base, markers) -> None:
    spatial = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    widths = {spatial: base.text_width}
    for marker in markers[:1]:
        # Temporal keys come first in sorted order and have a misleading width.
        widths[f"a.{marker}.0.transformer_blocks.0.attn2.to_k"] = 2048
    assert guess_base(widths) == base
    assert guess_base({kohya_name(path): width for path, width in widths.items()}) == base


def test_an_unknown_width_is_no_base() -> None:
    assert guess_base({"down_blocks.0.attentions.0.attn2.to_k": 33}) is None
    assert guess_base({"down_blocks.0.resnets.0.conv1": 768}) is None
