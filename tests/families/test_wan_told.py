"""What an artist is told of a Wan and its LoRA: what is left out, what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import wan_files
from safetensors.torch import save_file

from trainer.cli.main import main
from trainer.config import load_config
from trainer.lora.convert import convert
from trainer.lora.metadata import LoraCard, build_metadata
from trainer.lora.pairs import LoraError
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


@pytest.mark.parametrize("setting, folder", [("text_encoder", "vae"), ("vae", "text_encoders")])
def test_a_file_in_the_wrong_place_is_named_and_the_right_one_offered(
    setting, folder, models, file, tmp_path
):
    wrong = next((models / folder).iterdir())
    config = load_config(overrides={"model": str(file), setting: str(wrong)})
    finding = model_findings(config, Disk(None))[0][0]
    place = {"text_encoder": "text_encoders", "vae": "vae"}[setting]
    assert finding.state == "bad" and finding.setting == setting
    assert "That file is a " in finding.text and "of the family wan" in finding.text
    assert [Path(path).parent.name for path in finding.found] == [place]
    again = model_findings(config, Disk(models.parent))[0][0]
    assert len(again.found) == 1, "the same folder is searched once"
    lora = tmp_path / "lora.safetensors"
    name = "lora_unet_blocks_0_ffn_0"
    parts = {f"{name}.lora_down.weight": torch.ones(1, 128),
             f"{name}.lora_up.weight": torch.ones(96, 1)}  # fmt: skip
    save_file(parts, lora)
    config = load_config(overrides={"model": str(file), setting: str(lora)})
    assert "That file is a LoRA" in model_findings(config, Disk(None))[0][0].text
    out = tmp_path / "out.safetensors"
    with pytest.raises(LoraError, match="this one is for an unknown size of Wan"):
        convert(lora, out, "kohya-webui")


@pytest.mark.parametrize("tiny", [True, False])
def test_an_estimate_says_what_it_is_of(models, file, tiny, capsys):
    if not tiny:
        next((models / "vae_approx").iterdir()).unlink()
    sizes = {"frames": 5, "height": 32, "width": 48, "batch-size": 1}
    argv = [f"--data.{name}={value}" for name, value in sizes.items()]
    argv += ["--lora.rank=2", "--adversarial.features=efficientnet-lite0", "--optim.accumulation=3"]
    assert main(["preflight", "--estimate", "--model", str(file), *argv]) == 0
    said = capsys.readouterr().out
    assert "5 frames of 48 x 32 px, LoRA rank 2, 1 x 3 clips per step" in said
    assert ("with the tiny VAE" in said) == tiny
    assert ("WITHOUT" in said) == ("taew2_1.safetensors or" in said) != tiny
    assert "Your computer needs 1 GB of free RAM; it has " in said


def test_models_says_where_it_looked(models, file, capsys):
    assert main(["models", "--comfyui", str(models)]) == 0
    said = capsys.readouterr().out
    assert str(file) in said
    searched = said[said.index("Searched: ") :]
    assert str(models) in searched and "ComfyUI was not found" not in said


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
