"""Load Video Model: what it lists, every file form it reads, and what it says of a bad folder."""

from __future__ import annotations

import json
import logging
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture
def copied(tiny_model, tmp_path):
    return Path(shutil.copytree(tiny_model, tmp_path / "copy ü"))


@pytest.fixture
def models(comfy, tmp_path, monkeypatch):
    """An empty models/diffusers folder."""
    import folder_paths

    root = tmp_path / "diffusers"
    root.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(root)], {"folder"}))
    return root


def state(model):
    return model.model.diffusion_model.state_dict()


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_list_has_mini_first_and_every_video_folder(native, models, tiny_model):
    for name in ("zero", "Author/b model"):
        shutil.copytree(tiny_model, models / name)
    (models / "image" / "unet").mkdir(parents=True)
    (models / "image" / "unet" / "config.json").write_text(
        '{"_class_name": "UNet2DConditionModel"}'
    )
    (models / "broken" / "unet").mkdir(parents=True)
    (models / "broken" / "unet" / "config.json").write_text("{")
    assert native("catalog").list_models() == ["mini", "Author/b model", "zero"]
    assert native("catalog").resolve_model_name("Author/b model") == models / "Author" / "b model"


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../../b", "C:\\x", "", "..\\x"])
def test_a_name_never_leads_outside_the_model_folders(native, models, name):
    with pytest.raises(ValueError, match="not a name inside models/diffusers"):
        native("catalog").resolve_model_name(name)


def test_an_unknown_name_lists_what_is_there(native, models):
    with pytest.raises(ValueError, match="'gone' was not found.*Found: mini"):
        native("catalog").resolve_model_name("gone")


@torch.inference_mode()
def test_the_node_gives_a_clip_of_the_embedded_model(comfy):
    import nodes

    node = import_module(f"{comfy.__name__}.nodes.load_model").LoadVideoModel
    model, clip, vae = node.execute("mini", "default").result
    positive, negative = (
        nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red circle moves right", "")
    )
    empty = import_module(f"{comfy.__name__}.nodes.latents").EmptyLatentVideo
    latent, _ = empty.execute(64, 64, 8, 1).result
    [sampled] = nodes.KSampler().sample(
        model, 0, 2, 5.0, "euler", "normal", positive, negative, latent
    )
    [images] = nodes.VAEDecode().decode(vae, sampled)
    assert images.shape == (8, 64, 64, 3)
    assert images.isfinite().all()


def test_a_wrong_name_is_refused_before_anything_runs(comfy, models):
    node = import_module(f"{comfy.__name__}.nodes.load_model").LoadVideoModel
    assert node.validate_inputs("mini") is True
    assert node.validate_inputs(None) is True
    assert "'gone' was not found" in node.validate_inputs("gone")


def test_every_input_and_output_of_the_nodes_is_explained(comfy):
    for name in ("load_model", "latents"):
        for node in import_module(f"{comfy.__name__}.nodes.{name}").NODES:
            schema = node.define_schema()
            assert schema.category.startswith("MCM/")
            assert all(part.tooltip for part in [*schema.inputs, *schema.outputs])


def test_info_says_what_the_trainer_knows(native, tiny_model):
    from trainer.diffusion.noise import VariancePreserving
    from trainer.families import load_model

    trained = load_model(str(tiny_model))
    info = native("info").video_info(native("model").load_native_model(tiny_model))
    for name in ("name", "width", "height", "fps", "licence", "base_hash"):
        assert getattr(info, name) == getattr(trained, name)
    path = VariancePreserving.from_config(info.scheduler_config)
    assert (path.config, path.prediction) == (trained.noise.config, trained.noise.prediction)
    assert info.frames == trained.family.frames
    assert info.default_frames == trained.frames


def test_another_model_is_refused(native):
    with pytest.raises(ValueError, match="not a text-to-video model of this pack"):
        native("info").video_info(object())


def test_the_licence_is_in_the_log(native, tiny_model, caplog):
    caplog.set_level(logging.INFO)
    native("model").load_native_model(tiny_model)
    assert "licence of the weights: Apache-2.0" in caplog.text


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn"])
@torch.inference_mode()
def test_weight_dtypes_store_and_sample(native, tiny_model, name):
    model = native("model").load_native_model(tiny_model, name)
    exact = native("model").load_native_model(tiny_model, "fp32")
    assert model.model_dtype() == native("model").DTYPES[name]
    assert model.model_size() <= exact.model_size() * (0.55 if name != "fp8_e4m3fn" else 0.35)
    x, steps = torch.randn(8, 4, 4, 4), torch.full((8,), 3.0)
    outs = [
        one.model.apply_model(x, steps, c_crossattn=torch.ones(8, 77, 64)) for one in (model, exact)
    ]
    assert (outs[0] - outs[1]).abs().max() <= 0.2 * outs[1].abs().max()


def test_an_unknown_weight_dtype_is_refused(native, tiny_model):
    with pytest.raises(ValueError, match="`weight_dtype`='int3' is unknown; use default, fp32"):
        native("model").load_native_model(tiny_model, "int3")


def rewrite(folder, form):
    """Store the UNet's weights in another of diffusers' file forms."""
    unet = folder / "unet"
    weights = load_file(unet / WEIGHTS)
    (unet / WEIGHTS).unlink()
    if form == "bin":
        torch.save(weights, unet / "diffusion_pytorch_model.bin")
    elif form == "fp16":
        save_file(weights, unet / "diffusion_pytorch_model.fp16.safetensors")
    else:
        names = sorted(weights)
        index = {"weight_map": {}}
        for part, keys in enumerate((names[::2], names[1::2]), start=1):
            shard = f"diffusion_pytorch_model-0000{part}-of-00002.safetensors"
            save_file({key: weights[key] for key in keys}, unet / shard)
            index["weight_map"] |= dict.fromkeys(keys, shard)
        (unet / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["bin", "fp16", "sharded"])
def test_every_file_form_gives_the_same_weights(native, tiny_model, copied, form):
    rewrite(copied, form)
    load = native("model").load_native_model
    assert same(state(load(copied, "fp32")), state(load(tiny_model, "fp32")))


def test_a_missing_shard_is_named(native, copied):
    rewrite(copied, "sharded")
    (copied / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 weight files.*00002-of-00002"):
        native("model").load_native_model(copied)


class Payload:
    """What a hostile pickle would do."""

    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mcm-hostile-pickle-ran"),))


def test_a_pickle_that_holds_code_is_not_opened(native, copied):
    unet = copied / "unet"
    (unet / WEIGHTS).unlink()
    torch.save({"weight": Payload()}, unet / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="was not opened because it could run code"):
        native("model").load_native_model(copied)
    assert not Path("/tmp/mcm-hostile-pickle-ran").exists()


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("size", [0, 5, 2000])
def test_a_truncated_file_is_named(native, copied, part, size):
    path = copied / part / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="is damaged or incomplete.*Download it again"):
        native("bundle").load_video_model(copied)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(native, copied, part):
    shutil.rmtree(copied / part)
    with pytest.raises(ValueError, match=part):
        native("bundle").load_video_model(copied)


def test_weights_that_do_not_fit_are_counted(native, copied):
    path = copied / "unet" / WEIGHTS
    weights = load_file(path)
    weights["extra"] = weights.pop("conv_in.weight")
    weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights, path)
    with pytest.raises(ValueError, match="1 missing, 1 unexpected, 1 of another shape"):
        native("model").load_native_model(copied)


def test_empty_latents_are_checked_against_the_model(native, tiny_model):
    empty = native("latents").empty_latents
    model = native("model").load_native_model(tiny_model)
    latent = empty(64, 32, 8, 3, model)
    assert latent["samples"].shape == (24, 4, 4, 8)
    assert native("latents").frames_of(latent["samples"]) == 8
    with pytest.raises(ValueError, match="`frames`=9 is not supported by 'tiny'.*Context Windows"):
        empty(64, 64, 9, 1, model)
    with pytest.raises(ValueError, match="`width`=60 must be a multiple of 8"):
        empty(60, 64, 8, 1)


def test_a_model_for_frames_leaves_the_original_as_it_was(native, tiny_model):
    model = native("model").load_native_model(tiny_model)
    clone = native("latents").model_for_frames(model, 8)
    assert clone.model_options["transformer_options"]["mcm_frames"] == 8
    assert "mcm_frames" not in model.model_options["transformer_options"]
