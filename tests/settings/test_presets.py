"""Presets by card and quality: complete, valid, and what they change is what is asked for."""

from __future__ import annotations

import pytest

from trainer.cards import BUNDLED_SPEED, CARDS
from trainer.cli.main import build_parser
from trainer.cli.options import config_from
from trainer.config import PRESETS, ConfigError, load_config, save_config, values_of, with_overrides
from trainer.families import FAMILIES, card_settings
from trainer.settings import QUALITY_PRESETS, TrainConfig
from trainer.settings.presets import GOVERNED, memory_values


def every_presets():
    """(family, presets), those of a base model of another size too."""
    for family in FAMILIES:
        yield family, family.cards
        yield from ((family, base.cards) for base in family.bases if base.cards)


def test_every_family_has_a_preset_for_every_card():
    assert CARDS == (8, 12, 16, 24, 48)
    for family, presets in every_presets():
        assert tuple(p.gigabytes for p in presets) == CARDS
        assert all(p.frames in family.frames for p in presets)
        assert len({p.title for p in presets}) == len(CARDS)


@pytest.mark.parametrize("presets", [p for _, p in every_presets()])
def test_every_preset_is_a_valid_config(presets):
    for preset in presets:
        config = with_overrides(TrainConfig(), preset.settings)
        assert config.data.frames == preset.frames
        assert config.lora.rank == preset.rank
        assert config.hardware.gradient_checkpointing
        assert config.data.batch_size * config.optim.accumulation == 4


def test_bigger_cards_never_get_less():
    for _, presets in every_presets():
        sizes = [(p.frames * p.height * p.width, p.rank) for p in presets]
        assert sizes == sorted(sizes)


def test_a_card_size_is_below_file_and_flags_and_above_the_preset(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("steps = 3\n", encoding="utf-8")
    config = load_config(file, "paper", {"model": "modelscope", "data.height": 128}, card=8)
    assert config.lora.rank == 32  # the card's, not the paper's 64
    assert config.steps == 3 and config.data.height == 128
    assert config.data.width == 256 and config.optim.offload


def test_the_flag_is_the_argument(tiny_model):
    for flag in ("--card", "--memory"):  # the second as in earlier versions
        options = build_parser().parse_args(["train", flag, "12", "--model", "animatediff"])
        config = config_from(options)
        assert config.data.width == 512 and config.memory == "lean"
    options = build_parser().parse_args(["train", "--model", "animatediff"])
    assert config_from(options).data.width is None


def test_models_with_their_own_settings_keep_them(tiny_model):
    assert card_settings("mini", 8) == card_settings(str(tiny_model), 8) == {}


def test_a_base_model_of_another_size_has_presets_of_its_own():
    assert card_settings("wan-14b", 24)["hardware.blocks_to_swap"] == 30
    assert card_settings("wan", 24)["hardware.blocks_to_swap"] == 0


def test_swapping_needs_what_it_needs():
    with pytest.raises(ConfigError, match="`hardware.blocks_to_swap`=3 needs .*gradient_check"):
        load_config(overrides={"hardware.blocks_to_swap": 3})
    with pytest.raises(ConfigError, match="`hardware.blocks_to_swap`=3 does not work with"):
        given = {"hardware.blocks_to_swap": 3, "memory": "lean", "hardware.compile": True}
        load_config(overrides=given)


def test_an_unknown_card_is_named():
    with pytest.raises(ValueError, match=r"`card`=10 GB has no preset; use 8, 12, 16, 24, 48"):
        card_settings("modelscope", 10)


@pytest.mark.parametrize("name", QUALITY_PRESETS)
def test_quality_is_the_same_on_the_command_line_and_the_page(name):
    from ui.form import base_values

    config = config_from(build_parser().parse_args(["train", "--quality", name]))
    page, values = base_values("mini", "recipe", "cpu", name), QUALITY_PRESETS[name].values
    assert {key: values_of(config)[key] for key in values} == values
    assert {key: page[key] for key in values} == values
    config = config_from(build_parser().parse_args(["train", "--quality", name, "--steps", "7"]))
    assert config.steps == 7


def test_the_time_of_a_quality_is_told_by_family():
    speeds = (BUNDLED_SPEED, *(family.speed for family in FAMILIES if family.speed))
    told = {QUALITY_PRESETS["normal"].about(speed) for speed in speeds}
    assert len(told) == 3 and all(" minutes on " in text for text in told)
    assert QUALITY_PRESETS["normal"].about(None) == QUALITY_PRESETS["normal"].help


def test_no_preset_sets_what_memory_stands_for():
    cards = (card.settings for family in FAMILIES for card in family.cards)
    for values in (*cards, *PRESETS.values(), *(q.values for q in QUALITY_PRESETS.values())):
        assert not set(values) & set(GOVERNED)


def test_memory_is_a_choice_with_exceptions(tmp_path):
    assert values_of(TrainConfig()).items() >= memory_values("fast").items()
    config = load_config(overrides={"memory": "tight", "optim.offload": False})
    assert config.hardware.gradient_checkpointing and not config.optim.offload
    save_config(config, tmp_path / "c.toml")
    assert load_config(tmp_path / "c.toml") == config
    # What follows the choice changes with it; an exception stays.
    for changed in (
        with_overrides(config, {"memory": "fast"}),
        load_config(tmp_path / "c.toml", overrides={"memory": "fast"}),
    ):
        assert not changed.hardware.gradient_checkpointing and not changed.optim.offload
