"""A small Wan in a folder is core's own classes at other sizes, with the trainer's numbers."""

from __future__ import annotations

import json
import shutil
from importlib import import_module

import pytest
import torch
import wan_files
from dynamic_vram import dynamic_vram
from safetensors.torch import load_file, save_file

LORA = "ink.safetensors"
LAYERS = 20
SHAPE = (2, 16, 3, 4, 6)
PROMPTS = ["", "a red star moving up", "star " * 40]
TINY = "taew2_1.safetensors"
SEED, STEPS, INTERVALS = 11, 4, 48


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan_files.save_small(tmp_path_factory.mktemp("diffusers") / "Wan klein ü")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def trained(folder):
    from trainer.families import load_model

    return load_model(str(folder))


@pytest.fixture(scope="module")
def loaded(native, folder):
    return native("bundle").load_video_model(folder, "fp32")


@pytest.fixture(scope="module")
def pairs(trained):
    return wan_files.random_pairs(trained.network)


@pytest.fixture(scope="module")
def loras(pairs, trained, tmp_path_factory):
    """A folder with the LoRA as the trainer exports it."""
    from trainer.lora.export import export_file
    from trainer.lora.metadata import LoraCard, build_metadata

    card = LoraCard(
        title="Ink", family="wan", base_model=trained.name, base_hash=trained.base_hash,
        base_license=trained.licence, frames=9, width=48, height=32, fps=8,
        prediction_type="velocity", shift=5.0, original_steps=INTERVALS,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("loras")
    export_file(pairs, place / LORA, build_metadata(card, pairs), dtype="fp32")
    return place


@pytest.fixture(autouse=True)
def lora_folder(comfy, loras, monkeypatch):
    import folder_paths

    entry = ([str(loras)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def noise(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found, wanted, tolerance=1e-4):
    return float((found - wanted).norm() / wanted.norm()) <= tolerance


@torch.no_grad()
def predicted(model, level, text):
    """The velocity of a MODEL, through core's `apply_model`."""
    import comfy.model_management as management

    management.load_models_gpu([model])
    sigma = torch.full((len(noise()),), level)
    states = text.expand(len(noise()), -1, -1)
    return (noise() - model.model.apply_model(noise(), sigma, c_crossattn=states)) / level


@torch.no_grad()
def wanted_of(trained, level, text):
    levels = torch.full((len(noise()),), level)
    return trained.predict(noise(), levels, text.expand(len(noise()), -1, -1))


@torch.inference_mode()
def encoded(clip, prompt):
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0].clone()


@torch.inference_mode()
def sampled(native, loaded, model, steps=STEPS):
    """A clip of 9 frames of 48 x 32 px through core's `sample` and the VAE: latents and images."""
    import comfy.sample

    clip, vae = loaded[1:]
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(each)) for each in (PROMPTS[1], "")]
    latent = native("latents").empty_latents(48, 32, 9, 1, model)["samples"]
    start = comfy.sample.prepare_noise(latent, SEED)
    found = comfy.sample.sample(
        model, start, steps, 1.0, "lcm", "simple", *texts, latent, seed=SEED, disable_pbar=True
    )
    return found.clone(), vae.decode(found.clone()).clone()


def test_model_clip_and_vae_are_cores_own_classes(loaded):
    import comfy.model_base
    import comfy.sd
    from comfy.taesd.taehv import TAEHV
    from comfy.text_encoders.t5 import T5

    model, clip, vae = loaded
    assert type(model.model) is comfy.model_base.WAN21
    assert type(clip) is comfy.sd.CLIP and type(vae) is comfy.sd.VAE
    assert type(clip.cond_stage_model.umt5xxl.transformer) is T5
    assert type(vae.first_stage_model) is TAEHV
    assert model.model.memory_usage_factor < 0.2 and vae.model_size() < 10**6


@pytest.mark.parametrize("level", [1.0, 0.9375, 0.1])
def test_the_models_prediction_is_the_trainers(trained, loaded, level):
    text = trained.encode_text(["a red star"])
    assert near(predicted(loaded[0], level, text), wanted_of(trained, level, text))


@pytest.mark.parametrize("prompt", PROMPTS, ids=["empty", "short", "cut"])
def test_states_of_prompts_are_the_trainers(trained, loaded, prompt):
    found, wanted = encoded(loaded[1], prompt), trained.encode_text([prompt])
    assert found.shape == wanted.shape == (1, wan_files.SMALL["tokens"], wan_files.TEXT_WIDTH)
    assert near(found, wanted)
    assert torch.equal(found.any(-1), wanted.any(-1)), "zero past the prompt's end"


def test_weighted_prompts_work_as_with_any_clip(loaded):
    plain, weighted = (encoded(loaded[1], text) for text in ("a red star", "a (red:1.4) star"))
    assert plain.shape == weighted.shape and not torch.equal(plain, weighted)


def test_a_json_tokenizer_gives_the_same_states(native, copied):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "red", "star"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    (copied / "tokenizer" / "spiece.model").unlink()
    made.save(str(copied / "tokenizer" / "tokenizer.json"))
    from trainer.families import load_model

    found = encoded(native("small_wan_parts").load_small_clip(copied, torch.float32), "red star")
    assert near(found, load_model(str(copied)).encode_text(["red star"]))


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encoding_and_decoding_are_the_trainers(trained, loaded, frames):
    vae = loaded[2]
    pixels = torch.rand(frames, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(pixels)
    wanted = trained.encode_clips(pixels.movedim(-1, 0)[None] * 2 - 1)
    assert latents.shape == wanted.shape == (1, 16, (frames + 3) // 4, 4, 6)
    assert near(latents, wanted)
    images = vae.decode(latents.clone())
    assert images.shape == (1, frames, 32, 48, 3)
    assert near(images, trained.decode_clips(wanted).movedim(1, -1) / 2 + 0.5)


@torch.inference_mode()
def test_several_clips_decode_as_one_by_one(trained, loaded):
    images = loaded[2].decode(noise())
    assert near(images, trained.decode_clips(noise()).movedim(1, -1) / 2 + 0.5)


def test_latents_of_the_nodes_are_those_of_the_model(loaded):
    form = loaded[0].model.latent_format
    assert torch.equal(form.process_in(noise()), noise())
    assert torch.equal(form.process_out(noise()), noise())


def test_preview_colours_are_fitted_to_its_vae(trained, native, loaded):
    """Least squares: what is left has nothing to do with the latents."""
    form = loaded[0].model.latent_format
    factors = torch.tensor(form.latent_rgb_factors)
    bias = torch.tensor(form.latent_rgb_factors_bias)
    assert factors.shape == (16, 3) and bias.shape == (3,) and form.taesd_decoder_name is None
    images = native("vae").colour_fields()
    latents = trained.encode_clips(images[:, :, None].expand(-1, -1, 5, -1, -1) * 2 - 1)
    shown = torch.einsum("ncfhw,cr->nrfhw", latents, factors) + bias.view(1, 3, 1, 1, 1)
    wanted = torch.nn.functional.adaptive_avg_pool2d(images * 2 - 1, 8)[:, :, None]
    left = wanted - shown
    together = torch.einsum("ncfhw,nrfhw->cr", latents, left) / latents.square().sum()
    assert together.abs().max() < 1e-3 and left.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert left.square().mean() < 0.95 * wanted.var()


def test_a_lora_of_the_trainer_loads_whole_in_both_loaders(native, trained, loaded, pairs, loras):
    import comfy.lora
    import comfy.sd
    import comfy.utils

    from trainer.lora.adapter import apply_lora

    model = loaded[0]
    state = comfy.utils.load_torch_file(str(loras / LORA), safe_load=True)
    patches = comfy.lora.load_lora(state, comfy.lora.model_lora_keys_unet(model.model, {}))
    assert len(patches) == len(pairs) == LAYERS and len(state) == 2 * LAYERS
    text = trained.encode_text(["a blue circle"])
    before = wanted_of(trained, 0.9, text)
    undo = apply_lora(trained.network, pairs)
    wanted = wanted_of(trained, 0.9, text)
    undo()
    core = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0)[0]
    ours = native("lora").load_lora(model, LORA, 1.0)
    for styled in (core, ours):
        found = predicted(styled, 0.9, text)
        assert near(found, wanted) and not near(found, before, 1e-2)
    assert near(predicted(model, 0.9, text), before), "and it can be undone"
    assert ours.get_model_object("model_sampling").shift == 5.0


def test_a_clip_of_one_step_is_the_trainers(native, trained, loaded, pairs):
    from trainer.lora.adapter import apply_lora

    start = noise(SEED, (1, *trained.latent_shape(9, 32, 48)))
    undo = apply_lora(trained.network, pairs)
    with torch.no_grad():
        velocity = trained.predict(start, torch.ones(1), trained.encode_text([PROMPTS[1]]))
    undo()
    styled = native("lora").load_lora(loaded[0], LORA, 1.0)
    latents, images = sampled(native, loaded, styled, 1)
    assert near(latents, start - velocity)
    assert near(images, trained.decode_clips(start - velocity).movedim(1, -1) / 2 + 0.5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8_e4m3fn"])
def test_other_weight_types_make_nearly_the_same_clip(native, folder, loaded, dtype):
    wanted = sampled(native, loaded, loaded[0])[0]
    other = native("bundle").load_video_model(folder, dtype)
    found = sampled(native, other, other[0])[0]
    weight = other[0].model.diffusion_model.blocks[0].ffn[0].weight
    assert weight.dtype == native("model").DTYPES[dtype]
    assert found.isfinite().all() and near(found, wanted, 0.3)


def test_dynamic_loading_makes_the_same_clip(native, folder, loaded):
    wanted = sampled(native, loaded, native("lora").load_lora(loaded[0], LORA, 1.0))[1]
    with dynamic_vram() as on:
        other = native("bundle").load_video_model(folder, "fp32")
        assert not on or other[0].is_dynamic()
        found = sampled(native, other, native("lora").load_lora(other[0], LORA, 1.0))[1]
        for part in (other[0], other[1].patcher, other[2].patcher):
            make, arguments = part.cached_patcher_init
            again = make(*arguments, disable_dynamic=True)
            assert not on or not again.is_dynamic()
            assert again.model is not part.model
    assert float((found - wanted).abs().max()) <= 2e-3


def test_its_info_is_that_of_its_notes(native, folder, loaded, trained):
    info = native("info").video_info(loaded[0])
    assert (info.family, info.name, info.fps, info.stride, info.sides) == (
        "wan", "small", 8, 4, 16,
    )  # fmt: skip
    assert (info.width, info.height, info.default_frames) == (32, 32, 5)
    assert loaded[0].get_model_object("model_sampling").shift == trained.noise.shift == 3
    assert info.base_hash == trained.base_hash
    assert native("bundle").folder_info(folder) == info


def test_it_is_listed_and_others_are_not(native, folder, tmp_path, monkeypatch):
    import folder_paths

    root = tmp_path / "diffusers"
    shutil.copytree(folder, root / "Author" / "small")
    wan_files.build_transformer(1).save_pretrained(root / "large" / "transformer")
    shutil.copytree(root / "large", root / "exact")
    shutil.copy(folder / TINY, root / "exact" / TINY)
    (root / "exact" / "vae").mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(root)], {"folder"}))
    assert native("catalog").list_models() == ["mini", "Author/small"]
    path = native("catalog").resolve_model_name("Author/small")
    assert native("routes")._folder_size("Author/small") == {
        "width": 32, "height": 32, "frames": 5,
        "steps": {"width": 16, "height": 16, "frames": 4},
    }  # fmt: skip
    assert native("catalog").is_small_wan(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-relu"}, "`feed_forward_proj`='gated-relu'.*'gated-gelu'"),
        ({"model_type": "t5"}, "`model_type`='t5'.*'umt5' only"),
        ({"d_ff": 40}, "do not fit its config.json"),
    ],
)
def test_text_encoders_that_core_does_not_run_are_refused(native, copied, change, message):
    place = copied / "text_encoder" / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        native("bundle").load_video_model(copied)


def test_torn_parts_are_named(native, copied):
    load = native("bundle").load_video_model
    place = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(place)
    save_file({k: v for k, v in state.items() if "blocks.1.ffn.net.2" not in k}, place)
    with pytest.raises(ValueError, match="2 missing, 0 unexpected.*blocks.1.ffn.2.bias"):
        load(copied)
    tiny = load_file(copied / TINY)
    save_file({k: v for k, v in tiny.items() if k.startswith("decoder.")}, copied / TINY)
    with pytest.raises(ValueError, match="lacks encoder.0.weight"):
        load(copied)
