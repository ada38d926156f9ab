"""Presets by graphics memory: complete, valid, and what they change is what is asked for."""

from __future__ import annotations

import pytest

from trainer.cli.main import build_parser
from trainer.cli.options import config_from
from trainer.config import load_config, with_overrides
from trainer.families import FAMILIES
from trainer.settings import TrainConfig
from trainer.settings.memory import CARDS, MEMORY_PRESETS, memory_presets, memory_settings


def test_every_family_has_a_preset_for_every_card():
    assert {family.name for family in FAMILIES} == set(MEMORY_PRESETS)
    assert CARDS == (8, 12, 16, 24, 48)
    for family in FAMILIES:
        presets = memory_presets(family.name)
        assert tuple(p.gigabytes for p in presets) == CARDS
        assert all(p.frames in family.frames for p in presets)
        assert len({p.title for p in presets}) == len(CARDS)


@pytest.mark.parametrize("family", list(MEMORY_PRESETS))
def test_every_preset_is_a_valid_config(family):
    for preset in memory_presets(family):
        config = with_overrides(TrainConfig(), preset.settings)
        assert config.data.frames == preset.frames
        assert config.lora.alpha == config.lora.rank == preset.rank
        assert config.hardware.gradient_checkpointing
        assert config.data.batch_size * config.optim.accumulation == 4


def test_bigger_cards_never_get_less():
    for presets in MEMORY_PRESETS.values():
        sizes = [(p.frames * p.height * p.width, p.rank) for p in presets]
        assert sizes == sorted(sizes)


def test_a_card_size_is_below_file_and_flags_and_above_the_preset(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[lora]\nalpha = 3.0\n", encoding="utf-8")
    config = load_config(file, "paper", {"model": "modelscope", "data.height": 128}, memory=8)
    assert config.lora.rank == 32  # the card's, not the paper's 64
    assert config.lora.alpha == 3 and config.data.height == 128
    assert config.data.width == 256 and config.optim.offload


def test_the_flag_is_the_argument(tiny_model):
    options = build_parser().parse_args(["train", "--memory", "12", "--model", "animatediff"])
    assert config_from(options).data.width == 512
    options = build_parser().parse_args(["train", "--model", "animatediff"])
    assert config_from(options).data.width is None


def test_models_with_their_own_settings_keep_them(tiny_model):
    assert memory_settings("mini", 8) == memory_settings(str(tiny_model), 8) == {}


def test_an_unknown_card_or_family_is_named():
    with pytest.raises(ValueError, match=r"`memory`=10 GB has no preset; use 8, 12, 16, 24, 48"):
        memory_settings("modelscope", 10)
    with pytest.raises(ValueError, match="`family`='sdxl'.*use modelscope, animatediff"):
        memory_presets("sdxl")
