"""ModelScope folders in every file form are one model; damaged and foreign ones are refused; the
licence goes with it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.cli.main import main
from trainer.families import ModelError, load_model
from trainer.lora.formats import read_lora
from trainer.models.weights import weight_files

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
           "text_encoder": "model"}  # fmt: skip


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "Kopie ü"))


def stored(folder: Path, part: str) -> dict:
    return load_file(folder / part / f"{WEIGHTS[part]}.safetensors")


def networks(model) -> dict:
    return {"unet": model.network, "vae": model.codec.vae, "text_encoder": model.text.encoder}


def rewrite(folder: Path, part: str, form: str) -> None:
    """Store ``part`` in another file form, in place of its safetensors file."""
    weights = stored(folder, part)
    place, stem = folder / part, WEIGHTS[part]
    half = {key: value.half() for key, value in weights.items()}
    (place / f"{stem}.safetensors").unlink()
    if form == "fp16":
        save_file(half, place / f"{stem}.fp16.safetensors")
    elif form == "fp16 bin":
        torch.save(half, place / f"{stem}.fp16.bin")
    elif form == "bin":
        # What diffusers and transformers write in pickles.
        name = "pytorch_model" if part == "text_encoder" else stem
        torch.save(weights, place / f"{name}.bin")
    else:
        shards(weights, place, stem, form)


def shards(weights: dict, place: Path, stem: str, form: str) -> None:
    kind, names = form.rpartition(" ")[2], sorted(weights)
    index: dict = {"metadata": {}, "weight_map": {}}
    for number, keys in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-0000{number}-of-00002.{kind}"
        part = {key: weights[key] for key in keys}
        if kind == "bin":
            torch.save(part, place / shard)
        else:
            save_file(part, place / shard)
        index["weight_map"] |= dict.fromkeys(keys, shard)
    text = json.dumps(index)
    (place / f"{stem}.{kind}.index.json").write_text(text, encoding="utf-8")


FORMS = (
    dict.fromkeys(WEIGHTS, "fp16"),
    dict.fromkeys(WEIGHTS, "bin"),
    dict.fromkeys(WEIGHTS, "sharded safetensors"),
    dict.fromkeys(WEIGHTS, "sharded bin"),
    {"unet": "sharded safetensors", "vae": "fp16 bin", "text_encoder": "bin"},
)


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: ", ".join(dict.fromkeys(forms.values())))
def test_every_file_form_is_the_same_model(forms, tiny_model, copied):
    for part, form in forms.items():
        rewrite(copied, part, form)
    wanted, found = (networks(load_model(str(folder))) for folder in (tiny_model, copied))
    for part in WEIGHTS:
        ours, theirs = (parts[part].state_dict() for parts in (found, wanted))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            expected = value.half().float() if "fp16" in forms[part] else value
            assert torch.equal(ours[key], expected), f"{part} {key}"
            assert ours[key].dtype == value.dtype


def test_a_folder_with_several_forms_reads_one_of_them(tiny_model, copied):
    for part, stem in WEIGHTS.items():
        torch.save({"other": torch.zeros(1)}, copied / part / f"{stem}.bin")
        save_file({"other": torch.zeros(1)}, copied / part / f"{stem}.fp16.safetensors")
    (only,) = weight_files(copied / "unet")
    assert only.name == "diffusion_pytorch_model.safetensors"
    assert load_model(str(copied)).base_hash == load_model(str(tiny_model)).base_hash


def test_weights_come_in_the_wanted_dtype(tiny_model):
    model = load_model(str(tiny_model), torch.bfloat16)
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.text.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.codec.vae.parameters()} == {torch.float32}
    assert not any(p.requires_grad or p.is_meta for p in model.network.parameters())


def test_an_autoencoder_with_old_attention_names_is_read(copied):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
    )
    vae.save_pretrained(copied / "vae")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in vae.state_dict().items():
        for new, before in names.items():
            key = key.replace(f".{new}.", f".{before}.")
        old[key] = value
    save_file(old, copied / "vae" / "diffusion_pytorch_model.safetensors")
    found = load_model(str(copied)).codec.vae.state_dict()
    assert all(torch.equal(found[key], value) for key, value in vae.state_dict().items())


@pytest.mark.parametrize("part", [*WEIGHTS, "tokenizer", "scheduler"])
def test_a_missing_part_is_named(part, copied):
    shutil.rmtree(copied / part)
    message = "not a text-to-video model" if part == "unet" else f"lacks {part}"
    with pytest.raises(ModelError, match=message):
        load_model(str(copied))


@pytest.mark.parametrize("part", WEIGHTS)
def test_missing_and_truncated_weights_are_named(part, copied):
    file = copied / part / f"{WEIGHTS[part]}.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=f"{part}.*damaged or incomplete.*Download it again"):
            load_model(str(copied))
    file.unlink()
    with pytest.raises(ModelError, match=f"{part}' has no weights"):
        load_model(str(copied))


def test_a_missing_shard_is_named(copied):
    rewrite(copied, "unet", "sharded bin")
    (copied / "unet" / "diffusion_pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match="lacks 1 of 2 weight files.*00002-of-00002.bin"):
        load_model(str(copied))


def reconfigure(file: Path, **changes) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"_class_name": "UNetSpatioTemporalConditionModel"}, "not a text-to-video model"),
        ("unet", {"block_out_channels": [16, 64]}, "do not fit its config.json.*another shape"),
        ("vae", {"_class_name": "VQModel"}, "is a VQModel; supported are AutoencoderKL"),
        ("text_encoder", {"model_type": "t5"}, "text encoder of type 't5'"),
    ],
)
def test_other_classes_and_sizes_are_refused(part, changes, message, copied):
    reconfigure(copied / part / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_model(str(copied))


def test_a_schedule_that_ends_in_pure_noise_is_refused(copied):
    reconfigure(copied / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(ModelError, match="zero terminal SNR"):
        load_model(str(copied))


def test_a_prediction_that_cannot_be_read_is_refused(copied):
    reconfigure(copied / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match="`prediction_type`='sample'.*must predict epsilon or"):
        load_model(str(copied))


def test_an_image_models_folder_is_asked_for_its_motion_module(sd15_parts, tmp_path):
    sd15_parts.save_folder(tmp_path)
    with pytest.raises(ModelError, match="is an image model; AnimateDiff needs a motion module"):
        load_model(str(tmp_path))


def test_the_licence_is_shown_and_goes_into_the_lora(copied, tmp_path, capsys):
    (copied / "mcm.json").unlink()  # the published folder has none
    assert load_model(str(copied)).licence == "CC-BY-NC-4.0"
    size = ["--data.frames=8", "--data.height=32", "--data.width=32", "--data.library-clips=1"]
    quick = ["--steps=1", "--adversarial.weight=0", "--preview.every=0", "--hardware.device=cpu"]
    lora = ["--lora.rank=2", "--trajectory.ddim-timesteps=8", "--data.batch-size=1"]
    run = tmp_path / "run"
    arguments = ["train", "--model", str(copied), "--run", str(run), *size, *quick, *lora]
    assert main(arguments) == 0
    assert "CC-BY-NC-4.0" in (run / "log.txt").read_text(encoding="utf-8")
    told = read_lora(run / "run.safetensors").metadata
    assert told["modelspec.license"] == told["mcm.base_license"] == "CC-BY-NC-4.0"
    capsys.readouterr()
    assert main(["inspect", str(run / "run.safetensors"), "--model", str(copied)]) == 0
    assert "CC-BY-NC-4.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry",
    [{"frames": "viele"}, {"height": 0}, {"fps": True}, {"name": "../x"}, {"licence": ["MIT"]},
     {"subjects": "cats"}, {"subjects": ["cats", 3]}],
)  # fmt: skip
def test_its_own_notes_set_numbers_and_names_only(copied, entry):
    (copied / "mcm.json").write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(ModelError, match=f"`{next(iter(entry))}`=.*mcm.json"):
        load_model(str(copied))
