"""Promises of trainer.config: precedence, exact round trips, and errors that name the way out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tomlkit
from pydantic import ValidationError

from trainer.config import (
    PRESETS,
    ConfigError,
    ConfigField,
    fields,
    load_config,
    save_config,
    to_toml,
    values_of,
    with_overrides,
)
from trainer.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
AWKWARD = ("", 'Käthe\'s "Stil"', "C:\\Users\\x", "a\nb", "猫 🎬", "# = [a]", "'''", "\t\x7f")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_defaults_are_the_recipe() -> None:
    config = load_config(overrides={"model": "no such folder"})
    assert config == with_overrides(TrainConfig(), {"model": "no such folder"})
    assert (config.recipe.motion.representation, config.recipe.motion.huber_c) == ("diff", 0.05)
    assert (config.recipe.adversarial.weight_mode, config.recipe.adversarial.ratio) == (
        "gradient_ratio",
        4.0,
    )
    assert (config.recipe.trajectory.replay_probability, config.lora.rank) == (0.8, 16)
    assert (config.start_from, config.preview.steps) == ("auto", (1, 2, 4, 8))


def test_a_base_model_recommends_its_own_settings(tmp_path: Path) -> None:
    assert load_config().optim.lr == 2e-3 != TrainConfig().optim.lr  # the mini model's mcm.json
    assert load_config(preset="paper").optim.lr == 5e-6  # the preset wins
    about = write(tmp_path / "mcm.json", '{"recommended": {"optim.lr": 3e-4}}')
    assert load_config(overrides={"model": str(tmp_path)}).optim.lr == 3e-4
    about.write_text('{"recommended": {"optim.rate": 1}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="optim.rate"):
        load_config(overrides={"model": str(tmp_path)})
    about.write_text("[1]", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a JSON object"):
        load_config(overrides={"model": str(tmp_path)})


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "[lora]\nrank = 8\n[optim]\nlr = 1e-3\n")
    config = load_config(file, "paper", {"optim.lr": 2e-3})
    assert config.recipe.motion.representation == "learned"  # preset over default
    assert config.lora.rank == 8  # file over preset
    assert config.optim.schedule == "constant"  # preset, where the file is silent
    assert config.optim.lr == 2e-3  # override over file
    assert config.preset == "paper"


def test_preset_is_taken_from_argument_then_overrides_then_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'preset = "lcm"\n')
    assert load_config(file).recipe.motion.representation == "raw"
    assert (
        load_config(file, overrides={"preset": "paper"}).recipe.motion.representation == "learned"
    )
    assert load_config(file, "recipe", {"preset": "paper"}).recipe.motion.representation == "diff"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_applied(name: str) -> None:
    config = load_config(preset=name)
    assert config.preset == name
    assert {key: values_of(config)[key] for key in PRESETS[name]} == PRESETS[name]


def test_presets_and_their_choices_are_the_same_names() -> None:
    record = next(record for record in fields() if record.name == "preset")
    assert set(record.choices) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_unset_stays_unset_where_the_base_model_or_a_preset_says_something(
    preset, tmp_path
) -> None:
    names = ("data.library_guidance", "trajectory.guidance_min", "trajectory.guidance_max")
    config = load_config(preset=preset, overrides=dict.fromkeys(names))
    assert [values_of(config)[name] for name in names] == [None] * 3
    save_config(config, tmp_path / "c.toml")
    assert load_config(tmp_path / "c.toml") == config
    recommending = load_config()
    assert values_of(recommending)["data.library_guidance"] == 2.0, "the mini model's own"
    save_config(recommending, tmp_path / "c.toml")
    assert load_config(tmp_path / "c.toml") == recommending


def draw(record: ConfigField, rng: random.Random) -> object:
    low, high = record.minimum, record.maximum
    if record.optional and rng.random() < 0.3:
        return None
    if record.name == "adversarial.augment":
        return rng.choice(["", "color", "cutout,color"])
    if record.type == "choice":
        return rng.choice(record.choices)
    if record.type == "bool":
        return rng.random() < 0.5
    if record.type == "int":
        assert low is not None and high is not None
        step = record.multiple or 1
        return rng.randint(int(low) // step, int(high) // step) * step
    if record.type == "float":
        assert low is not None and high is not None
        return rng.choice([low, high, rng.uniform(low, high)])
    if record.name == "data.background":
        return rng.choice(["#ffffff", "#12ab34"])
    never_empty = ("model", "start_from", "adversarial.features", "adversarial.clip")
    texts = [text for text in AWKWARD if text or record.name not in never_empty]
    if record.type == "path":
        return Path("Ordner mit Ä") / rng.choice([text or "x" for text in texts])
    return {
        "str": lambda: rng.choice(texts),
        "strs": lambda: tuple(rng.sample(AWKWARD, 3)),
        "ints": lambda: tuple(rng.sample(range(1, 51), 4)),
    }[record.type]()


def test_saved_config_loads_equal_whatever_it_holds(tmp_path: Path) -> None:
    rng = random.Random(0)
    file = tmp_path / "Ünïcode dir" / "c.toml"
    file.parent.mkdir()
    for _ in range(25):
        values = {record.name: draw(record, rng) for record in fields()}
        values["trajectory.guidance_min"] = 0.0
        values["data.frames"] = None
        values["optim.offload"] = False
        values["hardware.blocks_to_swap"] = 0
        config = load_config(overrides=values)
        assert {name: values_of(config)[name] for name in values} == values
        save_config(config, file)
        assert load_config(file) == config


def test_saving_again_gives_the_same_text(tmp_path: Path) -> None:
    config = load_config(preset="paper", overrides={"images": "~/Bilder", "minutes": 2.5})
    save_config(config, tmp_path / "a.toml")
    assert to_toml(load_config(tmp_path / "a.toml")) == to_toml(config)


def test_toml_explains_each_setting_and_shows_unset_ones() -> None:
    text = to_toml(load_config())
    assert "# minutes = (not set)" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    words = " ".join(line.lstrip("# ") for line in text.splitlines())
    for record in fields():
        assert record.help in words, record.name
    assert set(tomlkit.parse(text)["recipe"]["motion"]) == set(
        load_config().recipe.motion.model_dump()
    )


def test_every_field_is_described_and_bounded() -> None:
    names = [record.name for record in fields()]
    assert len(names) == len(set(names)) > 60
    for record in fields():
        assert len(record.help) > 8 and record.help.endswith("."), record.name
        if record.type in ("int", "float"):
            assert record.minimum is not None and record.maximum is not None, record.name
        if record.default is None:
            assert record.optional, record.name
    kinds = {record.name: record.type for record in fields()}
    assert kinds["images"] == "path" and kinds["preview.steps"] == "ints"
    assert kinds["preview.prompts"] == "strs"
    assert kinds["minutes"] == "float" and kinds["data.crop"] == "choice"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_mark(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path / "c.toml", 'trigger = "Öl"\r\n[lora]\r\nrank = 4\r\n', encoding)
    config = load_config(file)
    assert (config.trigger, config.lora.rank) == ("Öl", 4)


def test_texts_from_a_form_become_values() -> None:
    config = load_config(
        overrides={
            "images": "", "minutes": "none", "data.frames": "16", "motion.huber_c": "0.1",
            "hardware.gradient_checkpointing": "true", "preview.steps": "1, 2,4",
            "preview.prompts": "a cat, red\nein Hund\n",
            "adversarial.augment": " color , cutout ",
        }
    )  # fmt: skip
    assert config.images is None and config.minutes is None and config.data.frames == 16
    assert config.recipe.motion.huber_c == 0.1 and config.hardware.gradient_checkpointing is True
    assert config.preview.steps == (1, 2, 4)
    assert config.preview.prompts == ("a cat, red", "ein Hund")
    assert config.recipe.adversarial.augment == "color,cutout"


def test_home_is_expanded_and_relative_paths_stay() -> None:
    config = load_config(overrides={"images": "~/Bilder", "videos": "clips/a"})
    assert config.images == Path.home() / "Bilder"
    assert config.videos == Path("clips/a")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"motion.huber_d": 1}, r"`motion.huber_d` is not a setting; did you mean `motion.huber_c"),
        ({"huber_c": 1}, r"did you mean `motion.huber_c`\?"),
        ({"optim.rank": 1}, r"did you mean `lora.rank`"),
        ({"stepz": 1}, r"did you mean `steps`"),
        ({"zzzzqq": 1}, r"`zzzzqq` is not a setting\.$"),
        ({"motion": 3}, r"`motion` is a group of settings"),
        ({"steps.x": 3}, r"`steps.x` is not a setting"),
        ({"motion.huber_c": -1}, r"`motion.huber_c`=-1 is not allowed; use 1e-06 to 10\."),
        ({"motion.loss": "hubber"}, r"'hubber' is not allowed; use huber, l2 \(did you mean huber"),
        ({"steps": "many"}, r"`steps`='many' is not allowed; use 1 to 10000000"),
        ({"data.height": 100}, r"use 32 to 2048, a multiple of 8"),
        ({"preview.steps": (1, 99)}, r"`preview.steps`=99 is not allowed.*50"),
        ({"preview.steps": ()}, r"`preview.steps`=\(\) is not allowed"),
        ({"recipe": 3}, r"`recipe` is a group of settings"),
        ({"memory": "small"}, r"`memory`='small' is not allowed; use fast, lean, tight"),
        ({"optim.lr": float("nan")}, r"`optim.lr`=nan is not allowed"),
        ({"trajectory.guidance_min": 9}, r"`trajectory.guidance_min`=9.0 is above"),
        ({"data.frames": 4, "data.frames_per_clip": 8}, r"`data.frames_per_clip`=8 is more than"),
        ({"adversarial.augment": "color,blur"}, r"blur is not known; use .* cutout"),
        ({"hardware.gradient_checkpointing": "maybe"}, r"use true or false"),
        ({"images": 3}, r"`images`=3 is not allowed"),
        ({"preset": "recipes"}, r"`preset`='recipes'.*did you mean recipe\?"),
    ],
)
def test_wrong_settings_are_named_with_a_way_out(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)


def test_all_wrong_settings_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={"lora.rank": 0, "steps": 0, "motion.loss": "x"})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[motion]\nhuber = 1\n", r"c.toml: `motion.huber` is not a setting"),
        (b"motion = 3\n", r"c.toml: `motion` is a group of settings"),
        (b"steps = \n", r"c.toml is not valid TOML: .*line 1"),
        (b'images = "C:\\Users\\me"\n', r"write Windows paths with / or in 'single' quotes"),
        ('trigger = "Öl"\n'.encode("cp1252"), r"c.toml is not UTF-8 text"),
        ("steps = 3\n".encode("utf-16"), r"c.toml is not UTF-8 text"),
        (b"steps = 1\nsteps = 2\n", r"c.toml is not valid TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml cannot be read"):
        load_config(tmp_path / "none.toml")


def test_with_overrides_changes_only_what_is_named_and_checks_it() -> None:
    config = load_config(preset="paper", overrides={"images": "x"})
    changed = with_overrides(config, {"steps": 7})
    assert changed.steps == 7 and with_overrides(changed, {"steps": config.steps}) == config
    with pytest.raises(ConfigError, match="`steps`=0"):
        with_overrides(config, {"steps": 0})


def test_config_cannot_be_changed_in_place() -> None:
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.recipe.motion.weight = 2.0  # type: ignore[misc]


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    save_config(load_config(), file)
    before = file.read_bytes()
    broken = load_config().model_copy(update={"trigger": "\ud800"})
    with pytest.raises(UnicodeEncodeError):
        save_config(broken, file)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.toml"]


def test_config_and_run_folders_load_without_torch() -> None:
    code = (
        "import sys, trainer.config, trainer.runs.state, trainer.runs.lock, trainer.runs.progress\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("images", "/etc"), ("start_from", "x"), ("prompts", "/etc/passwd"), ("vae", "x"),
     ("trigger", "x"), ("preview.prompts", ["x"]), ("model", "other")],
)  # fmt: skip
def test_a_base_model_recommends_no_paths_and_no_texts(tmp_path, name, value):
    told = {"recommended": {"optim.lr": 0.002, name: value}}
    (tmp_path / "mcm.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"`recommended` sets {name}, which only you may set"):
        load_config(overrides={"model": str(tmp_path)})
