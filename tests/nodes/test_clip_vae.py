"""CLIP equals transformers (tiny, CLIP-L, OpenCLIP-H layouts) and VAE equals diffusers."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from trainer.paths import MINI

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
OPENCLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "hidden_act": "gelu",
}
PROMPTS = ["", "a red circle moves right", "A photo: 3 cats, high-quality!"]


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def hidden_states(folder, prompts):
    """What a diffusers pipeline computes, (len(prompts), 77, width)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    return model(ids).last_hidden_state


def published_layout(folder, tokenizer, layout, pad_token):
    """A text encoder of ``layout`` at its real size with random weights, for ``tokenizer``."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(tokenizer, pad_token=pad_token)
    words.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(vocab_size=len(words), **layout)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tiny_clip_equals_transformers(native, tiny_model, prompt):
    clip = native("clip").load_native_clip(tiny_model, torch.float32)
    [[cond, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    assert relative(cond, hidden_states(tiny_model, [prompt])) <= 1e-5
    assert extra["pooled_output"].isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("layout", "pad_token"), [(CLIP_L, "<|endoftext|>"), (OPENCLIP_H, "!")], ids=["L", "H"]
)
def test_published_clip_layouts_equal_transformers(native, tiny_model, tmp_path, layout, pad_token):
    folder = published_layout(tmp_path, tiny_model / "tokenizer", layout, pad_token)
    check_prompts(native, folder)


@torch.inference_mode()
def test_the_published_vocabulary_is_read(native, tmp_path):
    import comfy.sd1_clip

    words = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    layout = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    check_prompts(native, published_layout(tmp_path, words, layout, "!"))


def check_prompts(native, folder):
    clip = native("clip").load_native_clip(folder, torch.float32)
    ours = torch.cat([clip.encode(prompt) for prompt in PROMPTS])
    assert relative(ours, hidden_states(folder, PROMPTS)) <= 1e-5


@torch.inference_mode()
def test_weighted_and_long_prompts_work_as_with_any_clip(native, tiny_model):
    clip = native("clip").load_native_clip(tiny_model, torch.float32)
    plain, weighted = clip.encode("a red circle"), clip.encode("a (red:1.4) circle")
    assert weighted.shape == plain.shape
    assert not torch.equal(weighted, plain)
    assert clip.encode("red circle " * 100).shape[1] == 77 * 3


def test_old_transformers_keys_load_too(native, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "model.safetensors"
    plain = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    save_file(
        {f"text_model.{key}": value for key, value in plain.items()}
        | {"text_model.embeddings.position_ids": torch.arange(77)[None]},
        path,
    )
    clips = [native("clip").load_native_clip(folder) for folder in (tmp_path, tiny_model)]
    assert torch.equal(*(clip.encode("a red circle") for clip in clips))


def test_a_text_encoder_that_lacks_weights_is_refused(native, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(key for key in weights if "fc1" in key))
    save_file(weights, path)
    with pytest.raises(ValueError, match="1 missing, 0 unexpected.*fc1"):
        native("clip").load_native_clip(tmp_path)


def test_another_text_encoder_is_refused_by_name(native, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="type 't5'"):
        native("clip").load_native_clip(tmp_path)


def save_tiny(folder):
    from diffusers import AutoencoderTiny

    widths = {"encoder_block_out_channels": [16] * 4, "decoder_block_out_channels": [16] * 4}
    AutoencoderTiny(scaling_factor=1.0, **widths).save_pretrained(folder)


def save_kl(folder):
    from diffusers import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    ).save_pretrained(folder)


@torch.inference_mode()
@pytest.mark.parametrize("save", [save_tiny, save_kl])
def test_vae_decodes_as_diffusers(native, tmp_path, save):
    import diffusers

    torch.manual_seed(0)
    save(tmp_path)
    name = json.loads((tmp_path / "config.json").read_text())["_class_name"]
    reference = getattr(diffusers, name).from_pretrained(tmp_path).eval()
    vae = native("vae").load_native_vae(tmp_path)
    latents = torch.randn(3, 4, 4, 6)
    pixels = (reference.decode(latents).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert relative(vae.decode(latents), pixels) <= 1e-5
    assert vae.decode(latents).shape == (3, 32, 48, 3)


@torch.inference_mode()
def test_tiny_vae_encodes_as_diffusers(native, tiny_model):
    from diffusers import AutoencoderTiny

    reference = AutoencoderTiny.from_pretrained(tiny_model / "vae").eval()
    vae = native("vae").load_native_vae(tiny_model / "vae")
    images = torch.rand(2, 32, 32, 3)
    latents = reference.encode(images.movedim(-1, 1) * 2 - 1).latents
    assert relative(vae.encode(images), latents) <= 1e-5


@torch.inference_mode()
def test_kl_vae_encodes_to_the_distribution_of_diffusers(native, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    save_kl(tmp_path)
    vae = native("vae").load_native_vae(tmp_path)
    images = torch.rand(2, 32, 32, 3)
    wanted = AutoencoderKL.from_pretrained(tmp_path).encode(images.movedim(-1, 1) * 2 - 1)
    ours, distribution = vae.encode(images), wanted.latent_dist
    assert ((ours - distribution.mean).abs() <= 6 * distribution.std).all()


@torch.inference_mode()
def test_latents_keep_the_scaling_factor_of_the_folder(native, tiny_model, tmp_path):
    tiny = native("vae").load_native_vae(tiny_model / "vae")
    ours = native("vae").latent_format(tiny_model / "vae", tiny)
    assert ours.process_in(torch.ones(1)) == 1
    save_kl(tmp_path)
    kl = native("vae").load_native_vae(tmp_path)
    stable = native("vae").latent_format(tmp_path, kl)
    assert stable.process_in(torch.ones(1)).item() == pytest.approx(0.18215)


@torch.inference_mode()
def test_preview_colours_of_the_mini_model_follow_its_autoencoder(native):
    folder = MINI / "vae"
    vae = native("vae").load_native_vae(folder)
    format_ = native("vae").latent_format(folder, vae)
    images = torch.rand(4, 3, 3, 3).repeat_interleave(24, 1).repeat_interleave(24, 2)
    latents = vae.encode(images)
    factors, bias = map(torch.tensor, (format_.latent_rgb_factors, format_.latent_rgb_factors_bias))
    preview = (latents.movedim(1, -1) @ factors + bias) / 2 + 0.5
    small = torch.nn.functional.adaptive_avg_pool2d(images.movedim(-1, 1), 9).movedim(1, -1)
    assert (preview - small).abs().mean() < 0.1


def test_another_autoencoder_is_refused_by_name(native, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="is a VQModel; this node reads AutoencoderKL"):
        native("vae").load_native_vae(tmp_path)
