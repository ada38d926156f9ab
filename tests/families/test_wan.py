"""Wan as a base model: found and read in each form, with what lies beside it; its record."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import wan_files
from safetensors.torch import save_file

from trainer.catalog import find_models
from trainer.families import (
    ModelError,
    family_named,
    family_of,
    load_model,
    resolve_model,
    token_counter,
)
from trainer.families.base import move
from trainer.families.causal import TinyCodec
from trainer.families.record import Companions
from trainer.lora.pairs import lora_targets
from trainer.models.fp8 import Fp8Linear
from trainer.models.weights import shapes_only

FAMILY = family_named("wan")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """ComfyUI's models folder with a tiny Wan and what it needs."""
    return wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")


@pytest.fixture(scope="module")
def file(models):
    return models / "diffusion_models" / "wan2.1_t2v_tiny ü.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan_files.save_folder(tmp_path_factory.mktemp("diffusers") / "Wan tiny")


@pytest.fixture(scope="module")
def model(file):
    return load_model(str(file))


def bare(file, tmp_path):
    """The transformer with nothing beside it."""
    return shutil.copyfile(file, tmp_path / file.name)


def test_a_file_finds_its_companions_in_comfyuis_folders(model, file):
    assert (model.family.name, model.name) == ("wan", file.stem)
    assert model.companions == {
        "text_encoder": "umt5_tiny.safetensors",
        "vae": "wan_2.1_vae.safetensors",
        "tiny_vae": "taew2_1.safetensors",
    }
    assert (model.frames, model.height, model.width, model.fps) == (33, 272, 480, 16)
    assert (model.licence, model.prediction_type) == ("Apache-2.0", "velocity")
    assert model.noise.config == {"shift": 5.0}
    assert isinstance(model.codec.quick, TinyCodec)
    assert not any(p.requires_grad for p in model.network.parameters())


def test_companions_that_are_given_win(models, file, tmp_path):
    text, vae, tiny = tmp_path / "text.safetensors", tmp_path / "v", tmp_path / "t.safetensors"
    shutil.copyfile(models / "text_encoders" / "umt5_tiny.safetensors", text)
    wan_files.build_vae().save_pretrained(vae)
    shutil.copyfile(models / "vae_approx" / "taew2_1.safetensors", tiny)
    model = load_model(str(bare(file, tmp_path)), text_encoder=text, vae=vae, tiny_vae=tiny)
    assert list(model.companions.values()) == ["text.safetensors", "v", "t.safetensors"]


def test_another_models_files_beside_it_are_passed_over(models, file, tmp_path):
    """Qwen-Image's VAE has the same layers, and stands before Wan's in the alphabet."""
    shutil.copytree(models, tmp_path / "models")
    vaes = tmp_path / "models" / "vae"
    shutil.copyfile(vaes / "wan_2.1_vae.safetensors", vaes / "qwen_image_vae.safetensors")
    (vaes / "a wan.safetensors").write_bytes(b"damaged")
    save_file({"x": torch.zeros(1)}, tmp_path / "models" / "text_encoders" / "a.safetensors")
    model = load_model(str(tmp_path / "models" / "diffusion_models" / file.name))
    assert model.companions["text_encoder"] == "umt5_tiny.safetensors"
    assert model.companions["vae"] == "wan_2.1_vae.safetensors"


@torch.no_grad()
def test_every_form_is_the_same_model(model, folder):
    other = load_model(str(folder))
    assert other.companions == {} and other.name == folder.name
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    level, prompts = torch.tensor([0.7]), ["a red star"]
    found = [m.predict(latents, level, m.encode_text(prompts)) for m in (model, other)]
    assert (found[0] - found[1]).norm() < 0.02 * found[1].norm(), "one is stored in fp16"


def test_the_folder_of_a_transformer_alone_is_read_with_what_lies_beside_it(folder):
    assert load_model(str(folder / "transformer")).name == "transformer"


@torch.no_grad()
def test_text_is_what_transformers_gives_and_zero_past_its_end(model):
    prompts = ["a red star", "a blue circle moving up"]
    states = model.encode_text(prompts)
    assert states.shape == (2, 512, wan_files.TEXT_WIDTH)
    for prompt, state in zip(prompts, states, strict=True):
        tokens = model.text.tokens(prompt)
        alone = model.text.encoder(torch.tensor([tokens])).last_hidden_state[0]
        assert torch.allclose(state[: len(tokens)], alone, atol=1e-4)
        assert (state[len(tokens) :] == 0).all()
    vectors = model.pooled_text(prompts)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    assert model.text.encode(["star " * 700]).shape[1] == 512
    assert model.text._cut(model.text.tokens("star " * 700))[-1] == 1, "an end it has always"


def test_parts_that_need_it_keep_fp32_wherever_the_model_goes(file):
    model = load_model(str(file), torch.bfloat16)
    rope = model.network.rope.freqs_cos.clone()
    for _ in range(2):
        assert model.dtype == torch.bfloat16
        for name, value in model.network.named_parameters():
            wanted = torch.float32 if FAMILY.exact(name) else torch.bfloat16
            assert value.dtype == wanted, name
        assert torch.equal(model.network.rope.freqs_cos.float(), rope.float())
        model.to("cpu", torch.bfloat16)
    assert model.codec.vae.dtype == torch.float32
    move(model.network, "meta", torch.float16, FAMILY.exact)
    assert all(value.is_meta for value in model.network.state_dict().values())


@torch.no_grad()
def test_an_fp8_file_predicts_what_its_numbers_say(models, model, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    place = tmp_path / "models" / "diffusion_models" / "scaled.safetensors"
    state = wan_files.original(wan_files.build_transformer().state_dict())
    save_file(wan_files.scaled_fp8(state), place)
    scaled = load_model(str(place), torch.bfloat16)
    scaled.to("cpu", torch.bfloat16)
    assert sum(isinstance(layer, Fp8Linear) for layer in scaled.network.modules()) == 20
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = [m.predict(latents, torch.tensor([0.7]), m.encode_text(["a star"]))
             for m in (scaled, model)]  # fmt: skip
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


def test_the_lora_covers_the_attentions_and_the_feed_forward_layers(model):
    targets = lora_targets(model.network)
    assert len(targets) == 2 * 10
    parts = {path.split(".", 2)[2] for path in targets}
    attention = {f"attn{n}.{p}" for n in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")}
    assert parts == attention | {"ffn.net.0.proj", "ffn.net.2"}
    with torch.device("meta"):
        assert len(lora_targets(FAMILY.skeleton("meta").network)) == 300


def test_what_is_missing_is_told_in_a_moment(file, tmp_path):
    alone = bare(file, tmp_path)
    needs = FAMILY.missing(alone, Companions())
    assert [need.setting for need in needs] == ["text_encoder", "vae"]
    assert needs[0].downloads[0].name == "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    with pytest.raises(ModelError, match="text encoder.*--text-encoder") as caught:
        load_model(str(alone))
    assert caught.value.part == "text_encoder"


@pytest.mark.parametrize("name", ["text_encoder", "vae", "tiny_vae"])
def test_a_wrong_companion_is_named_with_its_setting(file, name):
    with pytest.raises(
        ModelError, match="a transformer of Wan|not a UMT5 encoder|no tiny VAE"
    ) as e:
        load_model(str(file), **{name: file})
    assert e.value.part == name


def test_a_companion_that_is_of_no_use_is_refused(file, tiny_model, motion_module_file):
    with pytest.raises(ModelError, match="takes no `motion_module`") as caught:
        load_model(str(file), motion_module=motion_module_file)
    assert caught.value.part == "motion_module"
    with pytest.raises(ModelError, match="takes no `tiny_vae`"):
        load_model(str(tiny_model), tiny_vae=file)


def test_a_text_encoder_of_another_width_is_refused(models, file, tmp_path):
    wide = wan_files.build_transformer(text_dim=32)
    place = tmp_path / "models" / "diffusion_models" / "wide.safetensors"
    shutil.copytree(models, tmp_path / "models")
    save_file(wan_files.original(wide.state_dict()), place)
    with pytest.raises(ModelError, match="64 wide, the transformer reads 32"):
        load_model(str(place))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("img_emb.proj.0.bias", "I2V"),
        ("vace_blocks.0.x", "VACE"),
        ("video_patch_proj.weight", "MiniMax H3"),
        ("adaln_single.emb.timestep_embedder.linear_1.bias", "LTX-Video"),
        ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "HunyuanVideo"),
    ],
)
def test_other_video_models_are_refused_as_base_models_by_name(key, what, tmp_path):
    state = {key: torch.zeros(1)}
    if what in ("I2V", "VACE"):
        state |= wan_files.original(wan_files.build_transformer().state_dict())
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"{what}.*wan2.1_t2v_1.3B_fp16"):
        load_model(str(tmp_path / "other.safetensors"))


def test_files_of_other_families_stay_theirs(sd15_checkpoint, tiny_model, file, folder):
    assert family_of(sd15_checkpoint).name == "animatediff"
    assert family_of(resolve_model(str(tiny_model))).name == "modelscope"
    assert family_of(file) is FAMILY and family_of(folder) is FAMILY


def test_they_are_listed_with_licence_and_what_is_missing(models, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    comfyui = tmp_path / "ComfyUI"
    shutil.copytree(models, comfyui / "models")
    shutil.copytree(folder, comfyui / "models" / "diffusers" / "Wan tiny")
    pictures = wan_files.build_transformer(1).state_dict()
    state = wan_files.original(pictures) | {"img_emb.proj.0.bias": torch.zeros(1)}
    save_file(state, comfyui / "models" / "diffusion_models" / "wan i2v.safetensors")
    found = {each.name: each for each in find_models(comfyui)}
    assert "wan i2v.safetensors" not in found
    names = ("Wan tiny", "wan2.1_t2v_tiny ü.safetensors")
    assert all(found[name].ready and found[name].licence == "Apache-2.0" for name in names)
    shutil.rmtree(comfyui / "models" / "vae")
    shutil.rmtree(comfyui / "models" / "diffusers" / "Wan tiny" / "tokenizer")
    found = {each.name: each for each in find_models(comfyui)}
    assert found[names[1]].missing == ("VAE (models/vae/wan_2.1_vae.safetensors)",)
    assert found[names[0]].missing[0].startswith("Text encoder")


def test_tokens_are_counted_by_the_tokenizer_that_is_there(file, folder, tmp_path):
    for path in (file, folder):
        count, longest = token_counter(str(path))
        assert (count("a red star"), longest) == (
            len(load_model(str(file)).text.tokens("a red star")), 512,
        )  # fmt: skip
    count, longest = token_counter(str(bare(file, tmp_path)))
    assert (count("a red star"), longest) == (4, 512)


def test_shapes_alone_count_tokens_too(file, monkeypatch):
    """A check reads captions by the tokenizer, but no weights."""
    monkeypatch.setattr("trainer.models.weights._SMALL", 64)
    with shapes_only():
        model = load_model(str(file))
    assert model.text.tokens("a star")[-1] == 1
    assert model.network.proj_out.weight.is_meta and model.base_hash == ""


def test_skeletons_have_the_published_sizes():
    from trainer.families.wan import build_skeleton

    sizes = {}
    for name, options in {"1.3B": (12, 30, 8960), "14B": (40, 40, 13824)}.items():
        model = build_skeleton("meta", *options)
        sizes[name] = sum(p.numel() for p in model.network.parameters()) / 1e9
    assert {name: round(size, 2) for name, size in sizes.items()} == {"1.3B": 1.42, "14B": 14.29}
    encoder = sum(p.numel() for p in model.text.encoder.parameters()) / 1e9
    assert (round(encoder, 1), model.text.width) == (5.7, 4096)


def test_its_own_notes_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "own")
    told = {"name": "own", "frames": 17, "height": 32, "width": 48, "fps": 8}
    (tmp_path / "own" / "mcm.json").write_text(json.dumps(told), encoding="utf-8")
    model = load_model(str(tmp_path / "own"))
    assert (model.name, model.frames, model.height, model.width, model.fps) == (
        "own", 17, 32, 48, 8,
    )  # fmt: skip
