"""Wan's files in every form that people have: each is read whole, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
import wan_files
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from trainer.models.fp8 import Fp8Linear
from trainer.models.umt5 import read_umt5
from trainer.models.wan import (
    build_wan,
    diffusers_name,
    expert_of,
    is_exact,
    is_wan_file,
    original_name,
    other_name,
    read_wan,
    size_of,
)
from trainer.models.wan_vae import read_wan_vae
from trainer.models.weights import ModelError, shapes_only

SIZES = {"1.3B": (12, 30, 8960), "14B": (40, 40, 13824)}


@pytest.fixture(scope="module")
def network():
    return wan_files.build_transformer()


@pytest.fixture(scope="module")
def pieces():
    return wan_files.sentencepiece_model()


@pytest.fixture(scope="module")
def encoder():
    return wan_files.build_encoder()


@torch.no_grad()
def output(network, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 3, 4, 4, generator=generator).to(dtype)
    text = torch.randn(1, 8, wan_files.TEXT_WIDTH, generator=generator).to(dtype)
    return network(latents, torch.tensor([500.0]), encoder_hidden_states=text).sample.float()


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file_is_read_whatever_stands_before_its_names(network, prefix, tmp_path):
    file = tmp_path / "wan ü.safetensors"
    save_file(wan_files.original(network.state_dict(), prefix), file)
    found = read_wan(file)
    assert size_of(found.options) == "128 wide, 2 layers"
    assert torch.equal(output(build_wan(found)), output(network))


@pytest.mark.parametrize("size", ["5GB", "100KB"])
def test_a_diffusers_folder_is_read_whole_or_in_shards(network, size, tmp_path):
    network.save_pretrained(tmp_path / "transformer", max_shard_size=size)
    shards = list((tmp_path / "transformer").glob("*.safetensors"))
    assert (len(shards) > 1) == (size == "100KB")
    built = build_wan(read_wan(tmp_path / "transformer"))
    assert torch.equal(output(built), output(network))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_asked(network, dtype, tmp_path):
    file = wan_files.save_half(wan_files.original(network.state_dict()), tmp_path / "w.safetensors",
                               dtype)  # fmt: skip
    built = build_wan(read_wan(file), torch.bfloat16)
    for name, value in built.named_parameters():
        wanted = torch.float32 if is_exact(name) else torch.bfloat16
        assert value.dtype == wanted, name
    assert built.rope.freqs_cos.dtype in (torch.float32, torch.float64)
    assert distance(output(built, torch.bfloat16), output(network)) < 0.02


@pytest.mark.parametrize("form", ["scale_weight", "weight_scale"])
def test_scaled_fp8_keeps_its_bytes_and_computes_what_the_file_says(network, form, tmp_path):
    state = wan_files.scaled_fp8(wan_files.original(network.state_dict()), form)
    file = tmp_path / "scaled.safetensors"
    save_file(state, file)
    built = build_wan(read_wan(file))
    layers = {name: layer for name, layer in built.named_modules() if isinstance(layer, Fp8Linear)}
    assert len(layers) == 20, "ten matrices a block"
    built.to(torch.bfloat16).float()  # there and back: the bytes stay what they are
    exact = {}
    for name, value in wan_files.build_transformer().state_dict().items():
        exact[name] = value.half().float()
    for path, layer in layers.items():
        stored = state[f"{original_name(path)}.weight"]
        assert torch.equal(layer.weight, stored.view(torch.int8))
        exact[f"{path}.weight"] = stored.float() * state[f"{original_name(path)}.{form}"]
    reference = wan_files.build_transformer()
    reference.load_state_dict(exact)
    # Biases of fp16 went through bf16 and back.
    assert distance(output(build_wan(read_wan(file))), output(reference)) < 1e-5
    assert distance(output(built), output(reference)) < 0.02


def test_plain_fp8_is_read(network, tmp_path):
    state = wan_files.plain_fp8(wan_files.original(network.state_dict()))
    save_file(state, tmp_path / "plain.safetensors")
    built = build_wan(read_wan(tmp_path / "plain.safetensors"), torch.bfloat16)
    reference = wan_files.build_transformer()
    reference.load_state_dict({k: v.to(torch.float8_e4m3fn).float()
                               for k, v in network.state_dict().items()})  # fmt: skip
    assert distance(output(built, torch.bfloat16), output(reference)) < 0.02
    blocks = [layer for layer in built.blocks.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(layer.weight.dtype == torch.int8 for layer in blocks), "one byte a number"


def test_gradients_go_through_fp8_layers(network, tmp_path):
    state = wan_files.scaled_fp8(wan_files.original(network.state_dict()))
    save_file(state, tmp_path / "w.safetensors")
    layer = build_wan(read_wan(tmp_path / "w.safetensors")).blocks[0].ffn.net[2]
    plain = torch.nn.Linear(layer.in_features, layer.out_features)
    plain.weight.data = layer.weight.view(torch.float8_e4m3fn).float() * layer.scale
    plain.bias.data = layer.bias.data
    x = torch.randn(2, 3, layer.in_features, requires_grad=True)
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(plain(x).square().sum(), x)
    assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("form", ["file", "folder", "fp8"])
def test_full_size_files_have_no_key_too_many_or_too_few(name, form, tmp_path, monkeypatch):
    """On shapes alone: the weights of the published sizes without their contents."""
    heads, layers, hidden = SIZES[name]
    with torch.device("meta"):
        whole = WanTransformer3DModel(num_attention_heads=heads, num_layers=layers, ffn_dim=hidden)
    state = {k: v.half() for k, v in whole.state_dict().items()}
    path = tmp_path / "transformer"
    if form == "folder":
        path.mkdir()
        config = {**whole.config, "_class_name": "WanTransformer3DModel"}
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        monkeypatch.setattr("trainer.models.wan.read_weights", lambda folder: state)
    else:
        state = wan_files.original(state)
        state = wan_files.scaled_fp8(state) if form == "fp8" else state
        monkeypatch.setattr("trainer.models.wan.read_file", lambda file: state)
    found = read_wan(path)
    assert size_of(found.options) == name
    built = build_wan(found, torch.bfloat16)
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in whole.state_dict().items()
    }


def test_shapes_alone_are_read_of_a_file(network, tmp_path):
    wide = wan_files.build_transformer(1, ffn_dim=2048)
    save_file(wan_files.original(wide.state_dict()), tmp_path / "wide.safetensors")
    with shapes_only():
        built = build_wan(read_wan(tmp_path / "wide.safetensors"), torch.bfloat16)
    assert built.blocks[0].ffn.net[2].weight.is_meta


def test_names_go_there_and_back(network):
    names = list(network.state_dict())
    there = [original_name(name) for name in names]
    assert there == list(wan_files.original(network.state_dict()))
    assert [diffusers_name(name) for name in there] == names
    assert original_name("blocks.0.attn1.to_q") == "blocks.0.self_attn.q"
    assert original_name("transformer_blocks.0.attn1.to_q") is None
    assert is_wan_file(there) and not is_wan_file(names)


@pytest.mark.parametrize(
    ("key", "shape", "what"),
    [
        ("vace_patch_embedding.weight", (1,), "VACE"),
        ("control_adapter.conv.weight", (1,), "Fun Camera"),
        ("casual_audio_encoder.encoder.final_linear.weight", (1,), "S2V"),
        ("audio_proj.audio_proj_glob_1.layer.bias", (1,), "sound"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", (1,), "Animate"),
        ("patch_embedding_pose.weight", (1,), "SCAIL"),
        ("ref_conv.weight", (1,), "Fun Control"),
        ("img_emb.proj.0.bias", (1,), "I2V"),
        ("blocks.0.self_attn.q.lora_A.weight", (1,), "a LoRA"),
        ("patch_embedding.weight", (128, 36, 1, 2, 2), "36 input channels"),
        ("patch_embedding.weight", (128, 48, 1, 2, 2), "48 input channels"),
        ("head.head.weight", (192, 128), "Wan 2.2 5B"),
    ],
)
def test_relatives_of_wan_are_refused_by_name(network, key, shape, what, tmp_path):
    state = wan_files.original(network.state_dict()) | {key: torch.zeros(shape)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=rf"{what}.*wan2.1_t2v_1.3B_fp16"):
        build_wan(read_wan(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("video_patch_proj.weight", "MiniMax H3"),
        ("model.diffusion_model.adaln_single.emb.timestep_embedder.linear_1.bias", "LTX-Video"),
        ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "HunyuanVideo"),
        ("t5_yproj.weight", "Mochi"),
        ("something.weight", "no transformer of Wan"),
    ],
)
def test_other_video_models_are_refused_by_name(key, what, tmp_path):
    save_file({key: torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=rf"{what}.*wan2.1_t2v_1.3B_fp16"):
        read_wan(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "which", "other"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16", "high", "wan2.2_t2v_low_noise_14B_fp16"),
        ("wan2.2_t2v_low_noise_14B_fp8_scaled", "low", "wan2.2_t2v_high_noise_14B_fp8_scaled"),
        ("Wan2_2-T2V-A14B-LowNoise", "low", "Wan2_2-T2V-A14B-HighNoise"),
        ("Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn", "high", "Wan2_2-T2V-A14B_LOW_fp8_e4m3fn"),
        ("my high noise ü", "high", "my low noise ü"),
    ],
)
def test_the_experts_of_wan_22_are_known_by_name(network, name, which, other, tmp_path):
    """Their tensors are those of Wan 2.1, which is read from them."""
    path = tmp_path / f"{name}.safetensors"
    save_file(wan_files.original(network.state_dict()), path)
    assert expert_of(path) == which and other_name(name) == other
    assert build_wan(read_wan(path)).config.num_layers == 2


@pytest.mark.parametrize(
    "name",
    ["wan2.1_t2v_14B_fp16", "wan2.1_low_quality_14B", "high_fidelity_wan", "wan2.2_ti2v_5B_fp16"],
)
def test_other_names_are_no_experts(name, tmp_path):
    assert expert_of(tmp_path / f"{name}.safetensors") == ""


def test_the_parts_of_a_folder_of_two_experts_are_told_apart(tmp_path):
    for name in ("transformer", "transformer_2"):
        wan_files.build_transformer(1).save_pretrained(tmp_path / "two" / name)
    wan_files.build_transformer(1).save_pretrained(tmp_path / "one" / "transformer")
    found = [expert_of(tmp_path / path)
             for path in ("two/transformer", "two/transformer_2", "one/transformer")]  # fmt: skip
    assert found == ["high", "low", ""]


def test_a_folder_for_pictures_is_refused(tmp_path):
    wan_files.build_transformer(1, image_dim=8, added_kv_proj_dim=128).save_pretrained(
        tmp_path / "transformer"
    )
    with pytest.raises(ModelError, match="I2V"):
        read_wan(tmp_path / "transformer")


@pytest.mark.parametrize(
    ("drop", "add", "why"),
    [
        ("blocks.1.ffn.2.bias", {}, "1 missing"),
        ("", {"blocks.0.self_attn.extra": torch.zeros(1)}, "1 unexpected"),
        ("patch_embedding.weight", {}, "no complete transformer"),
        ("", {"blocks.0.ffn.0.weight_scale_2": torch.zeros(1)}, "nvfp4"),
        ("", {"blocks.0.ffn.0.scale_weight": torch.ones(())}, "is float32 instead of fp8"),
        ("", {"blocks.7.ffn.0.scale_weight": torch.ones(())}, "but not its weight: .* not whole"),
    ],
)
def test_a_torn_file_is_refused(network, drop, add, why, tmp_path):
    state = {**wan_files.original(network.state_dict()), **add}
    state.pop(drop, None)
    save_file(state, tmp_path / "torn.safetensors")
    with pytest.raises(ModelError, match=why):
        build_wan(read_wan(tmp_path / "torn.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize("form", ["fp32", "fp16", "scale_weight", "weight_scale"])
def test_text_encoder_files_with_their_tokenizer(encoder, pieces, form, tmp_path):
    state = wan_files.encoder_state(encoder, pieces)
    file = tmp_path / "umt5 ä.safetensors"
    if form in ("fp32", "fp16"):
        wan_files.save_half(state, file, torch.float32 if form == "fp32" else torch.float16)
    else:
        save_file(wan_files.scaled_fp8(state, form), file)
    built, tokenizer = read_umt5(file, torch.float32)
    assert isinstance(built.encoder.block[0].layer[1].DenseReluDense.wo, Fp8Linear) == (
        "scale" in form
    )
    assert built.encoder.embed_tokens.weight is built.shared.weight
    ids = tokenizer.ids("a red star moving up")
    assert ids[-1] == 1 and 2 not in ids
    tokens = torch.tensor([ids])
    ours = built(tokens).last_hidden_state
    wanted = encoder(tokens).last_hidden_state
    assert distance(ours, wanted) < {"fp32": 1e-6, "fp16": 1e-2}.get(form, 0.15)


@torch.no_grad()
@pytest.mark.parametrize("saved", ["spiece.model", "tokenizer.json"])
def test_text_encoder_folders(encoder, pieces, saved, tmp_path):
    encoder.save_pretrained(tmp_path / "text_encoder", max_shard_size="20KB")
    (tmp_path / "tokenizer").mkdir()
    if saved == "spiece.model":
        (tmp_path / "tokenizer" / saved).write_bytes(pieces)
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({"<unk>": 2, "a": 3, "star": 4}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.save(str(tmp_path / "tokenizer" / saved))
    built, tokenizer = read_umt5(tmp_path, torch.float32)
    tokens = torch.tensor([tokenizer.ids("a star")])
    assert tokens[0, -1] == 1
    assert torch.equal(built(tokens).last_hidden_state, encoder(tokens).last_hidden_state)


def test_the_full_size_encoder_has_no_key_too_many_or_too_few(pieces, monkeypatch, tmp_path):
    with torch.device("meta"):
        whole = UMT5EncoderModel(UMT5Config(
            vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        ))  # fmt: skip
    state = wan_files.encoder_state(whole, pieces)
    monkeypatch.setattr("trainer.models.umt5.read_file", lambda file, keep=None: dict(state))
    (tmp_path / "umt5.safetensors").touch()
    built, _ = read_umt5(tmp_path / "umt5.safetensors", torch.bfloat16)
    assert built.config.to_diff_dict() == whole.config.to_diff_dict()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("no tokenizer", "no tokenizer inside"),
        ("T5", "a T5"),
        ("CLIP", "a CLIP"),
        ("original", "names of Wan's own repository"),
        ("damaged", "tokenizer .* is damaged"),
    ],
)
def test_other_text_encoders_are_refused_by_name(encoder, pieces, change, what, tmp_path):
    state = wan_files.encoder_state(encoder, None if change == "no tokenizer" else pieces)
    if change == "T5":
        del state["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]
    elif change == "CLIP":
        state = {"text_model.embeddings.position_embedding.weight": torch.zeros(2)}
    elif change == "original":
        state = {"token_embedding.weight": torch.zeros(2), "blocks.0.attn.q.weight": torch.zeros(2)}
    elif change == "damaged":
        state["spiece_model"] = torch.zeros(20, dtype=torch.uint8)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"{what}.*umt5_xxl|{what}.*Download"):
        read_umt5(tmp_path / "other.safetensors", torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("form", ["file", "folder"])
def test_the_exact_vae_is_read(form, tmp_path):
    vae = wan_files.build_vae()
    path = tmp_path / "vae"
    if form == "folder":
        vae.save_pretrained(path)
    else:
        path = wan_files.save_half(
            wan_files.original_vae(vae.state_dict()), tmp_path / "wan_2.1_vae.safetensors",
            torch.float32,
        )  # fmt: skip
    built = read_wan_vae(path)
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(built.encode(clip).latent_dist.mode(), vae.encode(clip).latent_dist.mode())
    latents = torch.randn(1, 16, 2, 2, 2)
    assert torch.equal(built.decode(latents).sample, vae.decode(latents).sample)


def test_the_full_size_vae_has_no_key_too_many_or_too_few(monkeypatch, tmp_path):
    with torch.device("meta"):
        whole = AutoencoderKLWan()
    state = {k: torch.empty_like(v) for k, v in wan_files.original_vae(whole.state_dict()).items()}
    monkeypatch.setattr("trainer.models.wan_vae.read_file", lambda file: state)
    (tmp_path / "vae.safetensors").touch()
    built = read_wan_vae(tmp_path / "vae.safetensors")
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in whole.state_dict().items()
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"conv2.weight": torch.zeros(48, 48, 1, 1, 1)}, "Wan 2.2 5B's VAE"),
        ({"decoder.22.bias": torch.zeros(3)}, "a tiny VAE .*`tiny_vae`"),
        ({"encoder.down.0.block.0.conv1.weight": torch.zeros(3)}, "a VAE of images"),
        ({"encoder.conv1.weight": torch.zeros(4, 3, 3, 3, 3)}, "no complete VAE"),
    ],
)
def test_other_vaes_are_refused_by_name(change, what, tmp_path):
    state = wan_files.original_vae(wan_files.build_vae().state_dict())
    if "no complete" in what:
        state = {}
    save_file({**state, **change}, tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match=f"{what}.*wan_2.1_vae"):
        read_wan_vae(tmp_path / "vae.safetensors")


def test_written_files_have_the_names_that_are_published(network):
    """The names by which ComfyUI knows such files."""
    names = set(wan_files.original(network.state_dict()))
    assert {"head.modulation", "head.head.weight", "blocks.0.modulation", "blocks.0.norm3.weight",
            "blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight", "patch_embedding.weight",
            "time_projection.1.weight", "text_embedding.0.weight"} <= names  # fmt: skip
    assert "encoder.downsamples.0.residual.0.gamma" in wan_files.original_vae(
        wan_files.build_vae().state_dict()
    )
