"""The two experts of Wan 2.2 14B as base models: told apart, found beside each other, listed."""

from __future__ import annotations

import re
import shutil

import pytest
import wan_files
from safetensors.torch import save_file

from trainer.catalog import find_models
from trainer.cli.main import main
from trainer.config import load_config
from trainer.diffusion.part import FlowPart
from trainer.distill.plan import TeacherPlan
from trainer.families import ModelError, family_named, load_model
from trainer.families.record import Companions
from trainer.readiness.parts import Disk, model_findings

FAMILY = family_named("wan")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The models folder of a ComfyUI, only read."""
    return tmp_path_factory.mktemp("ComfyUI ä") / "models"


@pytest.fixture(scope="module")
def files(models):
    return wan_files.save_experts(models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of both."""
    path = wan_files.save_folder(tmp_path_factory.mktemp("diffusers") / "Wan2.2-T2V-A14B-Diffusers")
    wan_files.build_transformer(seed=7).save_pretrained(path / "transformer_2")
    return path


def own_copy(models, tmp_path):
    """A copy of ``models`` to change, and its two experts."""
    shutil.copytree(models, tmp_path / "models")
    place = tmp_path / "models" / "diffusion_models"
    return {which: place / name for which, name in wan_files.EXPERTS.items()}


def test_each_has_its_part_of_the_noise_levels_and_the_other_beside_it(files):
    high, low = load_model(str(files["high"])), load_model(str(files["low"]))
    assert high.noise == FlowPart(7.0, teacher_shift=12.0, low=0.875)
    assert low.noise == FlowPart(7.0, teacher_shift=12.0, high=0.875)
    assert (high.part, low.part) == ("high noise", "low noise")
    assert (high.other, low.other) == (files["low"], files["high"])
    assert low.companions["other_expert"] == files["high"].name
    assert (high.teaching.cfg, low.teaching.cfg) == (4.0, 3.0)
    assert high.negative == low.negative == FAMILY.teaching.negative


def test_the_plan_of_each_is_of_its_part(files):
    for which, w in (("high", 3.0), ("low", 2.0)):
        config = load_config(overrides={"model": str(files[which])})
        plan = TeacherPlan.of_model(config, load_model(str(files[which])))
        assert (plan.places, plan.stride, plan.library_guidance) == (24, 2, w)
        assert len(plan.rollout) == 12 and plan.guidance == (w, w)


def test_parts_of_a_folder_are_models_and_the_whole_folder_asks_which(folder):
    high, low = (load_model(str(folder / part)) for part in ("transformer", "transformer_2"))
    assert (high.part, low.part) == ("high noise", "low noise")
    assert low.name == "Wan2.2-T2V-A14B-Diffusers low noise"
    assert low.other == folder / "transformer"
    with pytest.raises(ModelError, match="choice between the two experts.*transformer_2"):
        load_model(str(folder))
    assert any("choice between the two experts" in each for each in FAMILY.shelf.lacks(folder))


@pytest.mark.parametrize("given", ["only one", "two", "as setting"])
def test_another_name_of_the_other_is_found_where_it_is_clear(given, models, files, tmp_path):
    mine = own_copy(models, tmp_path)
    other = mine["high"].rename(mine["high"].with_name("my High Noise ü.safetensors"))
    (other.parent / "broken high noise.safetensors").write_bytes(b"torn")
    if given != "only one":
        shutil.copyfile(other, other.with_name("yours high noise.safetensors"))
    options = {"other_expert": other} if given == "as setting" else {}
    if given == "two":
        with pytest.raises(ModelError, match="high-noise expert.*--other-expert") as caught:
            load_model(str(mine["low"]))
        assert caught.value.part == "other_expert"
    else:
        assert load_model(str(mine["low"]), **options).other == other


def test_the_low_noise_one_needs_the_other_and_says_where_to_put_it(models, files, tmp_path):
    mine = own_copy(models, tmp_path)
    mine["high"].unlink()
    needs = FAMILY.missing(mine["low"], Companions())
    assert [need.setting for need in needs] == ["other_expert"]
    assert mine["high"].name in needs[0].text and str(mine["low"].parent) in needs[0].text
    assert needs[0].downloads[0].folder == "models/diffusion_models"
    findings = model_findings(load_config(overrides={"model": str(mine["low"])}), Disk(None))[0]
    assert findings[0].state == "bad" and findings[0].setting == "other_expert"
    assert FAMILY.shelf.lacks(mine["low"])


def test_the_high_noise_one_does_without_the_other(models, files, tmp_path):
    mine = own_copy(models, tmp_path)
    mine["low"].unlink()
    assert load_model(str(mine["high"])).other is None


@pytest.mark.parametrize("wrong", ["itself", "another model"])
def test_a_wrong_other_is_refused(wrong, files, tmp_path):
    given = files["low"] if wrong == "itself" else tmp_path / "wan2.1_t2v_14B.safetensors"
    with pytest.raises(ModelError, match="is not the high-noise expert") as caught:
        load_model(str(files["low"]), other_expert=given)
    assert caught.value.part == "other_expert"


def test_a_wan_for_all_levels_takes_no_other(files, tmp_path):
    models = wan_files.save_comfyui(tmp_path / "models")
    with pytest.raises(ModelError, match="takes no `other_expert`"):
        load_model(str(next((models / "diffusion_models").iterdir())), other_expert=files["low"])


def test_they_are_listed_and_described(models, files, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    found = {each.name: each for each in find_models(models.parent)}
    for which, file in files.items():
        assert found[file.name].ready
        assert main(["inspect", str(file)]) == 0
        shown = capsys.readouterr().out
        assert re.search(f"^size +128 wide, 2 layers {which} noise$", shown, re.MULTILINE)


def test_the_published_size_is_told_with_its_part(tmp_path):
    from trainer.families.wan_experts import title_of
    from trainer.models.wan import size_of

    large = {"num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40}
    file = tmp_path / wan_files.EXPERTS["high"]
    assert size_of(large) + title_of(file) == "14B high noise"


def test_a_pictures_expert_is_refused_by_name(files, tmp_path):
    network = wan_files.build_transformer(in_channels=36)
    file = tmp_path / "wan2.2_i2v_low_noise_14B.safetensors"
    save_file(wan_files.original(network.state_dict()), file)
    with pytest.raises(ModelError, match="36 input channels"):
        load_model(str(file))
