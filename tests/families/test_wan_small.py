"""A small Wan: a folder whose tiny VAE works alone. It is found, loaded, estimated and trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import wan_files
from safetensors.torch import load_file, save_file

from trainer.catalog import find_models
from trainer.cli.main import main
from trainer.families import ModelError, card_settings, family_of, load_model, token_counter
from trainer.families.causal import TinyCodec
from trainer.families.record import Companions
from trainer.media import read_clip
from trainer.models.tiny_vae import read_tiny_vae
from trainer.runs.events import read_events
from trainer.runs.folder import Run

TINY = "taew2_1.safetensors"
TOKENS = wan_files.SMALL["tokens"]
SETTINGS = {
    "--steps": 2, "--data.library-clips": 2, "--data.library-steps": 4, "--data.batch-size": 2,
    "--data.min-side": 16, "--lora.rank": 2, "--preview.every": 2, "--preview.count": 1,
    "--preview.steps": "1", "--preview.teacher-steps": 2, "--hardware.device": "cpu",
    "--adversarial.features": "efficientnet-lite0", "--trajectory.ddim-timesteps": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan_files.save_small(tmp_path_factory.mktemp("models") / "Wan klein ü")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def options(folder, style_images, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    given = {"--model": folder, "--images": style_images, "--prompts": prompts, **SETTINGS}
    return [f"{name}={value}" for name, value in given.items()]


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", *options, f"--run={path}"]) == 0
    return Run.open(path)


def test_its_notes_say_what_it_is_like(model, folder):
    assert (model.family.name, model.name, model.fps) == ("wan", "small", 8)
    assert (model.frames, model.height, model.width) == (5, 32, 32)
    assert model.subjects == ("circle", "square", "star")
    assert model.companions == {"vae": TINY, "tiny_vae": TINY}
    assert model.base_hash and card_settings(str(folder), 8) == {}
    assert not any(p.requires_grad for p in (*model.network.parameters(),
                                             *model.codec.vae.parameters()))  # fmt: skip


def test_its_levels_have_the_shift_of_its_notes(model, copy):
    assert model.noise.shift == model.noise.teacher.shift == 3
    (copy / "mcm.json").write_text("{}", encoding="utf-8")
    other = load_model(str(copy)).noise
    assert (other.shift, other.teacher.shift) == (5, 8)


@torch.no_grad()
def test_prompts_are_padded_and_cut_to_its_tokens(model, folder):
    states = model.encode_text(["a red star", "star " * 30])
    assert states.shape == (2, TOKENS, wan_files.TEXT_WIDTH)
    count = model.text.count("a red star")
    assert states[0, :count].all() and not states[0, count:].any() and states[1].all()
    counter, longest = token_counter(str(folder))
    assert (counter("a red star"), longest) == (count, TOKENS)


@torch.no_grad()
def test_the_tiny_vae_encodes_and_decodes_alone(model, folder):
    codec, tiny = model.codec, read_tiny_vae(folder / TINY, encoder=True)
    assert isinstance(codec, TinyCodec) and codec.quick is codec
    clips = torch.rand(2, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode_clips(clips)
    assert latents.shape == (2, *model.latent_shape(9, 32, 48)) == (2, 16, 3, 4, 6)
    assert torch.allclose(latents, tiny.encode(clips), atol=1e-5)
    for quick in (True, False):
        decoded = model.decode_clips(latents, quick)
        assert decoded.shape == clips.shape
        assert torch.allclose(decoded, tiny(latents).clamp(-1, 1), atol=1e-5)


def test_training_decodes_by_its_decoder_half(model):
    trained = model.codec.for_training(torch.device("cpu"), torch.float32, True, apart=False)
    assert trained.vae.encoder is None and model.codec.vae.has_encoder
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_()
    frames = trained.decode_frames(latents, torch.tensor([[0, 5, 8]]))
    frames.square().mean().backward()
    assert latents.grad.flatten(2).any(-1).all()
    whole = model.codec.decode(latents.detach())
    assert torch.allclose(frames.clamp(-1, 1), whole[0, :, [0, 5, 8]].transpose(0, 1), atol=1e-5)


def test_half_precision_leaves_its_vae_exact(folder):
    model = load_model(str(folder), torch.bfloat16).to("cpu", torch.bfloat16)
    assert model.codec.vae.dtype == torch.float32 and model.dtype == torch.bfloat16


def test_it_is_listed_as_ready(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    place = tmp_path / "ComfyUI" / "models" / "diffusers" / "small"
    shutil.copytree(folder, place)
    (found,) = (each for each in find_models(tmp_path / "ComfyUI") if each.model == str(place))
    assert found.ready and found.better_with == () and found.licence == "Apache-2.0"
    shutil.rmtree(place / "tokenizer")
    (found,) = (each for each in find_models(tmp_path / "ComfyUI") if each.model == str(place))
    assert found.missing == ("the folders text_encoder and tokenizer",)


def test_missing_and_torn_parts_are_named(copy):
    family, none = family_of(copy), Companions()
    (copy / TINY).rename(copy.parent / TINY)
    assert [need.setting for need in family.missing(copy, none)] == ["vae"]
    assert family.missing(copy, Companions(vae=copy.parent / TINY)) == ()
    state = load_file(copy.parent / TINY)
    save_file({k: v for k, v in state.items() if k.startswith("decoder.")}, copy / TINY)
    with pytest.raises(ModelError, match=r"lacks encoder.0.weight") as caught:
        load_model(str(copy))
    assert caught.value.part == "tiny_vae"
    assert load_model(str(copy), tiny_vae=copy.parent / TINY).codec.vae.has_encoder
    shutil.rmtree(copy / "text_encoder")
    assert family.missing(copy, none) == ()
    with pytest.raises(ModelError, match="lacks the folders text_encoder and tokenizer"):
        load_model(str(copy))


def test_an_exact_vae_that_is_given_is_used(copy, tmp_path):
    wan_files.build_vae().save_pretrained(tmp_path / "vae")
    model = load_model(str(copy), vae=tmp_path / "vae")
    assert not isinstance(model.codec, TinyCodec) and isinstance(model.codec.quick, TinyCodec)
    assert not model.codec.tiny.has_encoder
    shutil.copytree(tmp_path / "vae", copy / "vae")
    assert load_model(str(copy)).codec.tiny is None


@pytest.mark.parametrize("tokens", [4, 1000, "12"])
def test_a_wrong_number_of_tokens_is_refused(copy, tokens):
    (copy / "mcm.json").write_text(json.dumps({"tokens": tokens}), encoding="utf-8")
    with pytest.raises(ModelError, match="`tokens`=.*from 8 to 512"):
        load_model(str(copy))


def test_a_check_finds_nothing_missing_and_estimates(options, tmp_path, capsys):
    assert main(["preflight", "--check", *options, f"--run={tmp_path / 'run'}"]) == 0
    shown = capsys.readouterr().out
    assert f"64 wide; {TINY}." in shown and "Without a tiny VAE" not in shown
    assert "step LoRA" not in shown, "none is published for it"
    assert main(["preflight", "--estimate", *options, f"--run={tmp_path / 'run'}"]) == 0
    shown = capsys.readouterr().out
    assert "with the tiny VAE" in shown and "Peak memory" in shown


def test_it_trains_with_previews_and_exports(run):
    steps = read_events(run.events_path, "step")
    assert len(steps) == 2 and sum(step["grad_norm"] for step in steps) > 0
    for name in ("loss", "adversarial", "discriminator"):
        assert all(torch.isfinite(torch.tensor(step[name])) for step in steps), name
    assert read_clip(next((run.samples / "step-000002").glob("*steps-1.mp4")))[0].shape[0] == 5
    assert len(load_file(run.export_path)) == 2 * 20


def test_its_loras_graph_loads_it_by_this_pack(run):
    from safetensors import safe_open

    with safe_open(run.export_path, "pt") as file:
        graph = json.loads(file.metadata()["workflow"])
    nodes = {node["type"]: node for node in graph["nodes"]}
    assert nodes["MCM_LoadVideoModel"]["widgets_values"] == ["small", "default"]
    assert nodes["MCM_EmptyLatentVideo"]["widgets_values"] == [32, 32, 5, 1]
    assert "UNETLoader" not in nodes and "MCM_LoadLora" in nodes
