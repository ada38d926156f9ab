"""A tiny Wan as a single file trains, samples, is exported and goes on, by the command line; its
text encoder is read once.
"""

from __future__ import annotations

import gc
import re
import shutil
import weakref

import pytest
import torch
import wan_files
from safetensors.torch import load_file, save_file

from trainer.cli.main import main
from trainer.data.cache import ContentCache
from trainer.distill.student import compute_lora_in_input_dtype
from trainer.families import load_model, wan
from trainer.families.text import MaskedText
from trainer.lora.adapter import add_lora, apply_lora, lora_parameters
from trainer.lora.formats import read_lora
from trainer.lora.names import with_paths
from trainer.lora.pairs import lora_targets
from trainer.media import read_clip
from trainer.models import umt5, weights
from trainer.runs.events import read_events
from trainer.runs.folder import Run

LAYERS = [f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"] + ["ffn.0", "ffn.2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")


@pytest.fixture(scope="module")
def file(models):
    return next((models / "diffusion_models").iterdir())


@pytest.fixture(scope="module")
def options(file, style_images, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    return {
        "--model": file, "--images": style_images, "--prompts": prompts, "--steps": 2,
        "--data.frames": 5, "--data.height": 32, "--data.width": 32,
        "--data.library-clips": 2, "--data.batch-size": 2, "--data.min-side": 16,
        "--lora.rank": 2, "--preview.every": 2, "--preview.count": 1,
        "--preview.steps": "1", "--preview.teacher-steps": 2,
        "--adversarial.features": "efficientnet-lite0", "--hardware.device": "cpu",
        "--hardware.gradient-checkpointing": "true", "--trajectory.ddim-timesteps": 8,
        "--data.library-steps": 4,
    }  # fmt: skip


def train(options, path, **more):
    given = {**options, "--run": path, **more}
    return main(["train", *(f"{name}={value}" for name, value in given.items())])


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "wan"
    assert train(options, path) == 0
    return Run.open(path)


def test_it_trains_with_finite_losses_and_previews(run):
    steps = read_events(run.events_path, "step")
    assert len(steps) == 2 and sum(step["grad_norm"] for step in steps) > 0
    for name in ("loss", "adversarial", "discriminator", "grad_norm"):
        assert all(torch.isfinite(torch.tensor(step[name])) for step in steps), name
    assert read_clip(next((run.samples / "step-000002").glob("*steps-1.mp4")))[0].shape[0] == 5


def test_its_lora_has_the_names_that_comfyui_reads(run, capsys):
    names = set(load_file(run.export_path))
    assert names == {
        f"diffusion_model.blocks.{block}.{layer}.lora_{half}.weight"
        for block in range(2) for layer in LAYERS for half in "AB"
    }  # fmt: skip
    assert main(["inspect", str(run.export_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search("^mcm.family +wan$", shown, re.MULTILINE)
    assert re.search("^format +ComfyUI$", shown, re.MULTILINE)
    assert re.search("^modules +20$", shown, re.MULTILINE)


def test_other_forms_of_its_names_are_the_same_lora(run, file, tmp_path):
    """kohya's underscores, and down and up with an alpha."""
    network = load_model(str(file)).network
    wanted = read_lora(run.export_path, network).pairs
    assert sorted(wanted) == lora_targets(network)
    stored = load_file(run.export_path)
    kohya, plain = {}, {}
    for name, value in stored.items():
        layer, _, half = name.removesuffix(".weight").rpartition(".")
        part = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}[half]
        plain[f"{layer}.{part}"] = value
        flat = layer.removeprefix("diffusion_model.").replace(".", "_")
        kohya[f"lora_unet_{flat}.{part}"] = value
    for form in (kohya, plain):
        save_file(form, tmp_path / "other.safetensors")
        found = with_paths(read_lora(tmp_path / "other.safetensors").pairs)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[path].up, pair.up) for path, pair in wanted.items())


@torch.no_grad()
def test_its_lora_works_on_an_fp8_file(run, models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    place = tmp_path / "models" / "diffusion_models" / "fp8.safetensors"
    state = wan_files.original(wan_files.build_transformer().state_dict())
    save_file(wan_files.scaled_fp8(state), place)
    model = load_model(str(place))
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def predict():
        return model.predict(latents, torch.tensor([0.9]), model.encode_text(["a star"]))

    before = predict()
    pairs = read_lora(run.export_path, model.network).pairs
    undo = apply_lora(model.network, pairs, 50.0)
    changed = predict()
    undo()
    assert torch.equal(predict(), before) and not torch.equal(changed, before)
    for path, pair in pairs.items():  # the same by widened weights
        layer = model.network.get_submodule(path)
        plain = torch.nn.Linear(layer.in_features, layer.out_features)
        plain.weight.data = layer.weight.view(layer.kind).float() * layer.scale + pair.delta(50.0)
        plain.bias.data = layer.bias.data
        parent, _, name = path.rpartition(".")
        setattr(model.network.get_submodule(parent), name, plain)
    assert torch.allclose(predict(), changed, rtol=1e-4, atol=1e-4)


def test_an_adapter_trains_on_an_fp8_file(models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    place = tmp_path / "models" / "diffusion_models" / "fp8.safetensors"
    state = wan_files.original(wan_files.build_transformer().state_dict())
    save_file(wan_files.scaled_fp8(state), place)
    model = load_model(str(place), torch.bfloat16)
    add_lora(model.network, 2, 2.0)
    compute_lora_in_input_dtype(model.network)
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 8, wan_files.TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    model.predict(latents, torch.tensor([0.9]), text.bfloat16()).square().sum().backward()
    gradients = [p.grad for p in lora_parameters(model.network)]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert all(g.any() for g in gradients[1::2]), "of every up matrix"


def test_a_run_goes_on_and_samples_without_reading_the_text_encoder_again(
    run, file, tmp_path, monkeypatch
):
    monkeypatch.setattr(MaskedText, "encoder", property(lambda self: pytest.fail("was read")))
    assert main(["resume", str(run.path), "--steps=3"]) == 0
    assert [step["step"] for step in read_events(run.events_path, "step")] == [1, 2, 3]
    out = tmp_path / "clip ä.webp"
    asked = ["--prompt", "a blue circle", "--steps", "1", "--lora", str(run.export_path)]
    asked += ["--frames", "5", "--height", "32", "--width", "32", "--out", str(out)]
    assert main(["sample", "--model", str(file), *asked]) == 0
    assert read_clip(out)[0].shape[0] == 5


def test_the_text_encoder_is_gone_before_the_transformer_is_read(options, tmp_path, monkeypatch):
    whole, beside = [], []

    def watched(function):
        def call(*args):
            made = function(*args)
            module = made[0] if isinstance(made, tuple) else made
            if not weights._SHAPES_ONLY.get():
                gc.collect()
                beside.append([type(x()).__name__ for x in whole if x() is not None])
                whole.append(weakref.ref(module))
            return made

        return call

    monkeypatch.setattr(umt5, "read_umt5", watched(umt5.read_umt5))
    monkeypatch.setattr(wan, "build_wan", watched(wan.build_wan))
    cache = {"--data.cache": tmp_path / "cache", "--preview.every": 0}
    assert train(options, tmp_path / "run", **cache) == 0
    assert beside == [[], []], "what was in memory when the encoder, then the network was read"


@torch.no_grad()
def test_states_come_back_from_disk_as_they_were(file, tmp_path):
    cache = ContentCache(tmp_path / "cache")
    first, second = load_model(str(file)), load_model(str(file))
    first.text_store = second.text_store = cache
    prompts = ["a red star", "", "a blue circle moving up slowly"]
    states = first.encode_text(prompts)
    assert first.text.loaded is None, "it is let go"
    assert torch.equal(second.encode_text(prompts), states)
    assert second.text.loaded is None and len(list(cache.root.rglob("*.safetensors"))) == 3
    assert cache.size() < 3 * 4000, "the zeros past the end are not kept"
    plain = load_model(str(file))
    assert torch.equal(plain.encode_text(prompts), states)


def test_another_encoder_has_states_of_its_own(models, file, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    other = tmp_path / "models" / "text_encoders" / "umt5_tiny.safetensors"
    state = load_file(other)
    state["encoder.final_layer_norm.weight"] *= 2
    save_file(state, other)
    cache = ContentCache(tmp_path / "cache")
    found = []
    for path in (file, tmp_path / "models" / "diffusion_models" / file.name):
        model = load_model(str(path))
        model.text_store = cache
        found.append(model.encode_text(["a star"]))
    assert not torch.equal(*found)
