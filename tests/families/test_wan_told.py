"""What an artist is told of a Wan and its LoRA: what is left out, what cannot be used."""

from __future__ import annotations

import pytest
import wan_files
from safetensors.torch import save_file

from trainer.cli.main import main
from trainer.config import load_config
from trainer.lora.metadata import LoraCard, build_metadata
from trainer.readiness.parts import Disk, model_findings


@pytest.fixture
def models(tmp_path):
    return wan_files.save_comfyui(tmp_path / "Komfy UI ä" / "models")


@pytest.fixture
def file(models):
    return next((models / "diffusion_models").iterdir())


def test_a_tiny_vae_that_is_not_there_is_told_with_where_to_get_it(models, file):
    config = load_config(overrides={"model": str(file)})
    told = {finding.part: finding for finding in model_findings(config, Disk(None))[0]}
    assert "Tiny VAE" not in told
    next((models / "vae_approx").iterdir()).unlink()
    told = {finding.part: finding for finding in model_findings(config, Disk(None))[0]}
    assert told["Tiny VAE"].state == "note" and "graphics memory" in told["Tiny VAE"].text
    assert told["Tiny VAE"].downloads


TINY = "taew2_1.safetensors or lighttaew2_1.safetensors in models/vae_approx"


def test_the_list_of_models_says_what_it_is_like_without_a_tiny_vae(models, file, capsys):
    asked = ["models", "--comfyui", str(models.parent)]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert file.name in said and "tiny VAE" not in said
    next((models / "vae_approx").iterdir()).unlink()
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert f"Better with {TINY}. Without a tiny VAE the exact one decodes" in said
    assert said.count("Better with") == 1, "other models have nothing to do with it"


@pytest.mark.parametrize("name", ["wan2.1_i2v_480p.safetensors", "my model.safetensors"])
def test_inspect_says_what_a_picture_to_video_file_is(tmp_path, capsys, name):
    state = wan_files.original(wan_files.build_transformer(in_channels=36).state_dict())
    save_file(state, tmp_path / name)
    assert main(["inspect", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert "cannot be used" in said and "I2V" in said


def test_a_base_model_is_not_converted(models, tmp_path, capsys):
    vae = next((models / "vae").iterdir())
    assert main(["convert", str(vae), str(tmp_path / "x"), "--to", "comfyui"]) == 1
    assert "is no LoRA" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_flow_is_not_declared_to_predict_noise():
    for declared, prediction in (("v", "v_prediction"), ("epsilon", "epsilon"), (None, "velocity")):
        sizes = {"frames": 33, "width": 480, "height": 272, "fps": 16}
        base = {"base_model": "wan", "base_hash": "", "base_license": ""}
        card = LoraCard(title="a", family="wan", prediction_type=prediction, **base, **sizes)
        found = build_metadata(card, {})
        assert found.get("modelspec.prediction_type") == declared
