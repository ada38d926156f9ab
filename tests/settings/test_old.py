"""Old files and flags: what loads as before, and what is refused with a sentence."""

from __future__ import annotations

import inspect

import pytest

from trainer.adversarial.heads import Discriminator
from trainer.adversarial.losses import R1_EVERY, GradientRatio
from trainer.cli.main import build_parser
from trainer.cli.options import config_from
from trainer.config import ConfigError, fields, load_config
from trainer.diffusion.noise import SIGMA_DATA, TIMESTEP_SCALING
from trainer.distill.optimizers import BETAS
from trainer.motion.learned import EMA_DECAY
from trainer.settings.old import CONSTANTS

OLD = """
warm_start = true
[trajectory]
timestep_scaling = 4.0
sigma_data = 0.5
guidance_max = 12.0
[motion]
weight = 2.0
head_ema = 0.95
[adversarial]
ratio = 3.0
ratio_ema = 0.9
r1_every = 8
head_channels = 64
[lora]
rank = 32
alpha = 32.0
[optim]
betas = [0.9, 0.99]
[hardware]
gradient_checkpointing = true
"""


def test_an_old_file_loads(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(OLD, encoding="utf-8")
    config = load_config(file)
    recipe = config.recipe
    assert (recipe.motion.weight, recipe.adversarial.ratio) == (2.0, 3.0)
    assert (recipe.trajectory.guidance_max, config.lora.rank) == (12.0, 32)
    assert config.hardware.gradient_checkpointing and config.start_from == "auto"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "alpha = 32.0",
            "alpha = 16.0",
            "`lora.alpha` is no longer .* equals `lora.rank`, here 32",
        ),
        ("sigma_data = 0.5", "sigma_data = 1.0", r"`trajectory.sigma_data` is .* always 0\.5\."),
        ("[0.9, 0.99]", "[0.9, 0.999]", r"`optim.betas` is no longer .* always \[0\.9, 0\.99\]"),
        ("r1_every = 8", "r1_every = 16", "c.toml: `adversarial.r1_every` is .* always 8"),
    ],
)
def test_an_old_value_that_cannot_be_had_is_refused_with_the_reason(old, new, message, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(OLD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(file)


@pytest.mark.parametrize(
    ("old", "start"),
    [
        ({"init_lora": None, "warm_start": True}, "auto"),
        ({"init_lora": "", "warm_start": "false"}, "none"),
        ({"init_lora": "a.safetensors", "warm_start": True}, "a.safetensors"),
        ({}, "auto"),
    ],
)
def test_both_ways_to_start_are_one(old, start):
    assert load_config(overrides=old).start_from == start


def test_constants_are_the_ones_in_use():
    channels = inspect.signature(Discriminator).parameters["head_channels"].default
    assert {
        "trajectory.timestep_scaling": TIMESTEP_SCALING,
        "trajectory.sigma_data": SIGMA_DATA,
        "motion.head_ema": EMA_DECAY,
        "adversarial.ratio_ema": GradientRatio().decay,
        "adversarial.r1_every": R1_EVERY,
        "adversarial.head_channels": channels,
        "optim.betas": BETAS,
    } == CONSTANTS


@pytest.mark.parametrize(
    "flags",
    [
        ["--motion.weight=2"],
        ["--set", "motion.weight=2"],
        ["--set", "recipe.motion.weight=2", "--set", "lora.alpha=16"],
        ["--motion.weight", "2", "--init-lora", "none", "--trajectory.sigma-data=0.5"],
    ],
)
def test_every_setting_of_the_recipe_has_a_flag(flags):
    assert config_from(build_parser().parse_args(["train", *flags])).recipe.motion.weight == 2


def test_set_without_a_value_says_how():
    with pytest.raises(ConfigError, match="--set motion.weight` has no value; write it like"):
        config_from(build_parser().parse_args(["train", "--set", "motion.weight"]))


def test_an_artist_meets_few_settings():
    shown = [record for record in fields() if not record.expert]
    assert 20 < len(shown) <= 37
    assert not any(record.path.startswith("recipe.") for record in shown)
