"""Every form of a Stable Diffusion 1.5 and of a motion module is the same video model; everything
else is refused with a message that says what to do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from official import FULL
from safetensors.torch import load_file, save_file
from sd15_files import CHANNELS, TEXT_WIDTH, original_motion, original_unet, original_vae

from trainer.families import ModelError, load_model
from trainer.families.animatediff import check_pair, unet_options
from trainer.models.checkpoint import ImageModel, read_image_model
from trainer.models.clip import build_text_encoder, clip_tokenizer
from trainer.models.motion_module import motion_module
from trainer.models.sd15 import diffusers_name, original_name
from trainer.models.weights import check_fit

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def model(sd15_checkpoint, motion_module_file):
    return load_model(str(sd15_checkpoint), motion_module=motion_module_file)


@pytest.fixture(scope="module")
def reference(sd15_parts):
    """diffusers' own union of the two."""
    from diffusers import UNetMotionModel

    return UNetMotionModel.from_unet2d(sd15_parts.unet, sd15_parts.adapter).eval()


def halved(state):
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def assert_same_weights(network, state):
    ours = network.state_dict()
    assert ours.keys() == state.keys()
    for key, value in state.items():
        expected = value if "motion_modules" in key else value.half().float()
        assert torch.equal(ours[key], expected), key


def test_a_checkpoint_with_a_module_is_diffusers_motion_unet(model, reference, sd15_parts):
    assert_same_weights(model.network, reference.state_dict())
    ours = model.codec.vae.state_dict()
    for key, value in sd15_parts.vae.state_dict().items():
        assert torch.equal(value.half().float(), ours[key]), key
    text = sd15_parts.text_encoder.state_dict()
    assert_same_weights(model.text.encoder, text)


def test_the_model_computes_what_diffusers_does(model, reference):
    text = model.encode_text(["a cat", "a dog"])
    latents = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([100, 900])
    reference.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        ours = model.predict(latents, t, text)
        rows = text.repeat_interleave(3, dim=0)
        theirs = reference(latents, t, encoder_hidden_states=rows).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_what_the_family_says_of_itself(model, motion_module_file):
    assert (model.name, model.family.name) == ("tiny Stil ä", "animatediff")
    assert (model.frames, model.width, model.height, model.fps) == (16, 512, 512, 8)
    assert model.motion_module == motion_module_file.name
    assert model.text.max_tokens == 77 and model.text.count("a photo of a cat") == 7
    assert "Apache-2.0" in model.licence and "Open RAIL" in model.licence
    betas = 1 - model.noise.alphas_cumprod[1:] / model.noise.alphas_cumprod[:-1]
    steps = betas.diff()
    assert (model.noise.alphas_cumprod[0] - (1 - 0.00085)).abs() < 1e-6
    assert (steps - steps.mean()).abs().max() < 1e-6  # linear, not scaled_linear
    assert model.noise.config["steps_offset"] == 1


def test_every_form_of_the_same_weights_is_one_base_model(
    model, sd15_parts, motion_module_file, tmp_path
):
    state = halved(sd15_parts.checkpoint())
    ema = {f"model_ema.{k.replace('.', '')}": torch.ones(1) for k in list(state)[:200]}
    torch.save({"state_dict": {**state, **ema}, "global_step": 3}, tmp_path / "ema.ckpt")
    folder = tmp_path / "Ordner ü"
    sd15_parts.save_folder(folder)
    adapter = tmp_path / "adapter"
    sd15_parts.adapter.save_pretrained(adapter)
    torch.save(original_motion(sd15_parts.adapter, "module."), tmp_path / "mm.ckpt")
    forms = [
        (tmp_path / "ema.ckpt", adapter),
        (folder, tmp_path / "mm.ckpt"),
        (folder, motion_module_file),
    ]
    for path, module in forms:
        other = load_model(str(path), motion_module=module)
        assert other.base_hash == model.base_hash, path
        assert torch.equal(other.encode_text(["x"]), model.encode_text(["x"])) or path == folder
    changed = {**state, "model.diffusion_model.out.2.bias": torch.ones(4).half()}
    save_file(changed, tmp_path / "other.safetensors")
    other = load_model(str(tmp_path / "other.safetensors"), motion_module=adapter)
    assert other.base_hash != model.base_hash


def test_a_pickle_with_lightnings_leftovers_is_read(
    sd15_parts, motion_module_file, tmp_path, monkeypatch
):
    from trainer.models.weights import ModelCheckpoint

    state = halved(sd15_parts.checkpoint())
    with monkeypatch.context() as installed:  # as on the machine that trained it
        name = ""
        for part in ModelCheckpoint.__module__.split("."):
            name = f"{name}.{part}".strip(".")
            installed.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].ModelCheckpoint = ModelCheckpoint
        kept = {"callbacks": {ModelCheckpoint: {"monitor": 1}}, "state_dict": state}
        torch.save(kept, tmp_path / "v1-5.ckpt")
    assert load_model(str(tmp_path / "v1-5.ckpt"), motion_module=motion_module_file)


def test_a_checkpoint_without_vae_takes_another_file(
    model, sd15_parts, motion_module_file, tmp_path
):
    state = halved(sd15_parts.checkpoint())
    bare = {k: v for k, v in state.items() if not k.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match="has no VAE.*--vae"):
        load_model(str(tmp_path / "bare.safetensors"), motion_module=motion_module_file)
    vae = {k: v.contiguous() for k, v in original_vae(sd15_parts.vae.state_dict()).items()}
    save_file(halved(vae), tmp_path / "vae.safetensors")
    sd15_parts.vae.save_pretrained(tmp_path / "vae")
    for path in (tmp_path / "vae.safetensors", tmp_path / "vae"):
        other = load_model(
            str(tmp_path / "bare.safetensors"), motion_module=motion_module_file, vae=path
        )
        for key, value in model.codec.vae.state_dict().items():
            assert torch.equal(other.codec.vae.state_dict()[key].half(), value.half()), key


def test_unet_names_agree_with_diffusers_own_conversion(sd15_parts):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    state = sd15_parts.unet.state_dict()
    original = original_unet(state)
    assert {original_name(key) for key in state} == set(original)
    prefixed = {f"model.diffusion_model.{k}": v for k, v in original.items()}
    assert convert_ldm_unet_checkpoint(prefixed, {"layers_per_block": 2}).keys() == state.keys()
    assert original_name("down_blocks.0.motion_modules.0.proj_in.weight") is None


def test_the_embedded_tokenizer_is_clips():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408 and tokenizer.pad_token_id == 49407
    ids = tokenizer("a photo of an astronaut riding a horse on mars").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
    assert tokenizer("Größe: 🐎!").input_ids == tokenizer("größe: 🐎!").input_ids


def foreign(name):
    zero, one = torch.zeros(1), torch.ones(1)
    return {
        "module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": zero},
        "lora": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": zero},
        "xl": {"conditioner.embedders.0.transformer.x": zero, "model.diffusion_model.x": one},
        "sd2": {"cond_stage_model.model.transformer.x": zero, "model.diffusion_model.x": one},
        "nothing": {"a": zero, "b": one},
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module", "is an AnimateDiff motion module.*`motion_module`"),
        ("lora", "is a LoRA.*`start_from`"),
        ("xl", "XL checkpoint.*needs a checkpoint of Stable Diffusion 1.5"),
        ("sd2", "Stable Diffusion 2 checkpoint"),
        ("nothing", "none of its 2 keys begins with `model.diffusion_model.`"),
    ],
)
def test_other_files_are_named_for_what_they_are(name, message, motion_module_file, tmp_path):
    save_file(foreign(name), tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path / "x.safetensors"), motion_module=motion_module_file)


def changed(state, key, value):
    key = f"model.diffusion_model.{key}"
    return {k: v for k, v in {**state, key: value}.items() if v is not None}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("input_blocks.0.0.weight", torch.zeros(32, 9, 3, 3), "an inpainting model"),
        (
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            torch.zeros(32, 1024),
            "reads text 1024 wide",
        ),
        ("input_blocks.4.0.in_layers.2.weight", None, "not a complete Stable.*is missing"),
        ("output_blocks.3.1.proj_in.weight", None, "1 missing.*up_blocks.1.attentions.0.proj_in"),
        ("input_blocks.1.9.x", torch.zeros(1), "1 unexpected.*input_blocks.1.9.x"),
    ],
)
def test_another_unet_is_refused(
    key, value, message, sd15_checkpoint, motion_module_file, tmp_path
):
    save_file(changed(load_file(sd15_checkpoint), key, value), tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path / "x.safetensors"), motion_module=motion_module_file)


@pytest.mark.parametrize("mark", ["v_pred", "header", "yaml"])
def test_a_checkpoint_that_predicts_velocity_is_read_as_such(
    mark, model, sd15_checkpoint, motion_module_file, tmp_path
):
    state, told = load_file(sd15_checkpoint), {"modelspec.prediction_type": "v"}
    marked = state | ({"v_pred": torch.zeros(0)} if mark == "v_pred" else {})
    save_file(marked, tmp_path / "v.safetensors", told if mark == "header" else None)
    if mark == "yaml":
        text = 'model:\n  params:\n    parameterization: "v"\n'
        (tmp_path / "v.yaml").write_text(text, encoding="utf-8")
    velocity = load_model(str(tmp_path / "v.safetensors"), motion_module=motion_module_file)
    assert velocity.prediction_type == "v_prediction"
    assert model.prediction_type == "epsilon"
    latents, t = torch.randn(1, 4, 4, 8, 8), torch.tensor([700])
    text = torch.randn(1, 7, 768)
    with torch.no_grad():
        output = model.predict(latents, t, text)
        alpha = model.noise.alphas_cumprod[t].sqrt()
        wanted = alpha * output + (1 - alpha**2).sqrt() * latents
        read = velocity.noise.read(latents, velocity.predict(latents, t, text), t)
        assert torch.allclose(read.eps, wanted, atol=1e-5)


def test_marks_that_cannot_be_followed_are_refused(sd15_checkpoint, motion_module_file, tmp_path):
    state, path = load_file(sd15_checkpoint), tmp_path / "x.safetensors"
    cases = (
        ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "zero terminal SNR"),
        ({}, {"modelspec.prediction_type": "x0"}, "predicts `x0`; only noise"),
        ({f"{UNET}time_embed.cond_proj.weight": torch.zeros(32, 256)}, {}, "distilled with LCM"),
    )
    for extra, header, message in cases:
        save_file(state | extra, path, header)
        with pytest.raises(ModelError, match=message):
            load_model(str(path), motion_module=motion_module_file)


@pytest.mark.parametrize("network", ["checkpoint", "module"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_file_is_read_by_its_content_not_by_its_name(
    network, kind, sd15_checkpoint, motion_module_file, tmp_path
):
    files = {"checkpoint": sd15_checkpoint, "module": motion_module_file}
    state = load_file(files[network])
    path = tmp_path / ("named wrong.ckpt" if kind == "safetensors" else "named wrong.safetensors")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    files[network] = path
    load_model(str(files["checkpoint"]), motion_module=files["module"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><html>Log in</html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b'{"error":"Access to model is restricted"}', "error message that was saved"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_no_download_is_named(
    suffix, content, message, sd15_checkpoint, motion_module_file, tmp_path
):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(str(path), motion_module=motion_module_file)
    with pytest.raises(ModelError, match=message):
        load_model(str(sd15_checkpoint), motion_module=path)


def test_a_module_that_lacks_a_part_of_its_up_blocks_is_incomplete(
    sd15_checkpoint, motion_module_file, tmp_path
):
    state = load_file(motion_module_file)
    kept = {k: v for k, v in state.items() if "up_blocks.1.motion_modules.2" not in k}
    save_file(kept, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="incomplete .*up blocks hold 11 modules, 12 belong"):
        load_model(str(sd15_checkpoint), motion_module=tmp_path / "x.safetensors")


def test_a_folder_says_what_it_predicts(sd15_parts, motion_module_file, tmp_path):
    folder = tmp_path / "Ordner v"
    sd15_parts.save_folder(folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.parent.mkdir()
    config.write_text('{"prediction_type": "v_prediction"}', encoding="utf-8")
    loaded = load_model(str(folder), motion_module=motion_module_file)
    assert loaded.prediction_type == "v_prediction"
    config.write_text('{"prediction_type": "flow_prediction"}', encoding="utf-8")
    with pytest.raises(ModelError, match="predicts `flow_prediction`"):
        load_model(str(folder), motion_module=motion_module_file)


def test_a_module_without_up_blocks_is_named(sd15_checkpoint, motion_module_file, tmp_path):
    state = load_file(motion_module_file)
    torch.save({k: v for k, v in state.items() if "up_blocks" not in k}, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match="in the down blocks only"):
        load_model(str(sd15_checkpoint), motion_module=tmp_path / "x.ckpt")


def test_a_unet_without_text_encoder_is_refused(sd15_checkpoint, motion_module_file, tmp_path):
    state = load_file(sd15_checkpoint)
    bare = {k: v for k, v in state.items() if not k.startswith("cond_stage_model.")}
    save_file(bare, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="without text encoder"):
        load_model(str(tmp_path / "x.safetensors"), motion_module=motion_module_file)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_truncated_checkpoints_are_named(suffix, sd15_checkpoint, motion_module_file, tmp_path):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(999)}}, path)
    else:
        path.write_bytes(sd15_checkpoint.read_bytes())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=f"cut{suffix}.*damaged.*"):
        load_model(str(path), motion_module=motion_module_file)


def test_the_motion_module_is_asked_for_and_must_fit(
    sd15_checkpoint, motion_module_file, tiny_model, tmp_path
):
    from diffusers import MotionAdapter

    with pytest.raises(ModelError, match="needs a motion module.*--motion-module"):
        load_model(str(sd15_checkpoint))
    with pytest.raises(ModelError, match="takes no `motion_module`"):
        load_model(str(tiny_model), motion_module=motion_module_file)
    MotionAdapter(block_out_channels=(32, 64, 64)).save_pretrained(tmp_path / "xl")
    with pytest.raises(ModelError, match="is for channels .32, 64, 64. .*not for XL"):
        load_model(str(sd15_checkpoint), motion_module=tmp_path / "xl")
    with pytest.raises(ModelError, match="gone"):
        load_model(str(sd15_checkpoint), motion_module=tmp_path / "gone.ckpt")


def test_clips_longer_than_the_module_are_refused(sd15_checkpoint, tmp_path):
    from diffusers import MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=CHANNELS, use_motion_mid_block=False, motion_max_seq_length=24
    )
    adapter.save_pretrained(tmp_path / "v1")
    model = load_model(str(sd15_checkpoint), motion_module=tmp_path / "v1")
    assert model.latent_shape(24, 64, 64) == (4, 24, 8, 8)
    with pytest.raises(ValueError, match="`frames`=25 .*use 1 to 24"):
        model.latent_shape(25, 64, 64)


def test_other_files_and_missing_ones_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ModelError, match="not a weights file"):
        load_model(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelError, match="was not found"):
        load_model(str(tmp_path / "gone.safetensors"))


@pytest.mark.parametrize("middle", [True, False], ids=["v2", "v3"])
def test_the_real_sizes_fit_key_by_key(middle):
    """The published configurations, their weights on torch's meta device."""
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    with torch.device("meta"):
        image = UNet2DConditionModel(**FULL, cross_attention_dim=768, attention_head_dim=8)
        adapter = MotionAdapter(**FULL, use_motion_mid_block=middle)
    state = {diffusers_name(k): v for k, v in original_unet(image.state_dict()).items()}
    base = ImageModel(Path("sd15"), state, {}, {})
    motion = {k: v for k, v in original_motion(adapter).items() if not k.endswith(".pe")}
    module = motion_module(motion, "mm")
    check_pair(base, module)
    with torch.device("meta"):
        unet = UNetMotionModel(**unet_options(base, module))
    check_fit(unet, {**base.unet, **module.weights}, Path("sd15"))
    assert (len(base.unet), module.max_frames) == (686, 32)


def test_clip_l_is_recognised_by_its_weights():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    with torch.device("meta"):
        weights = CLIPTextModel(config).state_dict()
    found = build_text_encoder(weights, Path("sd15")).config
    assert (found.hidden_size, found.num_hidden_layers, found.num_attention_heads) == (768, 12, 12)
    assert (found.intermediate_size, found.vocab_size, found.hidden_act) == (
        3072, 49408, "quick_gelu",
    )  # fmt: skip


def test_the_image_model_is_read_as_it_is_stored(sd15_checkpoint):
    found = read_image_model(sd15_checkpoint)
    assert (found.channels, found.text_width) == (CHANNELS, TEXT_WIDTH)
    assert {value.dtype for value in found.unet.values()} == {torch.float16}
