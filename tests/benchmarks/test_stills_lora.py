"""The plain style LoRA of the quality table, for a UNet and for a flow with a causal codec."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flow_family import FAMILY, save_tiny

from trainer import families
from trainer.config import load_config, with_overrides
from trainer.diffusion.noise import EPSILON, VELOCITY
from trainer.families import load_model
from trainer.lora.adapter import add_lora, load_lora_state
from trainer.lora.export import export_file
from trainer.lora.formats import read_lora
from trainer.lora.pairs import LoraPair, base_modules, lora_targets

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from quality_rows import merge_all  # noqa: E402
from stills_lora import Stills, denoising_loss, draws, open_model, train_stills  # noqa: E402

STEPS, RANK = 30, 4


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    families.FAMILIES.append(FAMILY)
    yield save_tiny(tmp_path_factory.mktemp("models") / "tiny flow")
    families.FAMILIES.remove(FAMILY)


@pytest.fixture(scope="module", params=["unet", "flow"])
def config(request, tiny_model, flow, style_images):
    return load_config(
        overrides={
            "model": str(tiny_model if request.param == "unet" else flow),
            "images": str(style_images), "lora.rank": RANK, "steps": STEPS, "minutes": None,
            "data.batch_size": 4, "optim.lr": 0.01, "hardware.device": "cpu", "data.min_side": 16,
        }
    )  # fmt: skip


def random_lora(model, file: Path, seed: int):
    """A LoRA of random weights on all layers, as read from its file."""
    generator = torch.Generator().manual_seed(seed)
    modules = base_modules(model.network)
    pairs = {}
    for path in lora_targets(model.network):
        weight = modules[path].weight
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=generator)
        pairs[path] = LoraPair(0.01 * down, up, 2.0)
    export_file(pairs, file, {}, base=model.network)
    return read_lora(file, model.network)


def test_an_image_is_a_clip_of_one_latent_with_its_caption(config):
    model = load_model(config.model)
    stills = Stills.read(config, model)
    channels, _, *cells = model.latent_shape(model.frames, model.height, model.width)
    assert stills.latents.shape == (12, channels, 1, *cells)
    assert len(set(stills.captions)) > 6 and all(stills.captions)
    batch = next(draws(stills, model, 4, seed=3))
    assert batch.latents.shape == batch.noise.shape == (4, channels, 1, *cells)
    assert len(batch.level.unique()) > 1 and batch.text.shape[0] == 4


def test_the_loss_is_the_error_of_what_the_network_predicts(config):
    model = load_model(config.model)
    batch = next(draws(Stills.read(config, model), model, 4, seed=3))
    path = model.noise
    predictions = [path.prediction]
    if path.prediction == EPSILON:
        predictions.append(VELOCITY)
    for prediction in predictions:
        model.noise = path = replace(path, prediction=prediction)
        alpha, sigma = path.alpha_sigma(batch.level, 5)
        point = alpha * batch.latents + sigma * batch.noise
        target = {
            EPSILON: batch.noise,
            VELOCITY: alpha * batch.noise - sigma * batch.latents,
        }.get(prediction, batch.noise - batch.latents)
        with torch.no_grad():
            output = model.predict(point, batch.level, batch.text)
            found = denoising_loss(model, batch)
        expected = (output - target).square().mean()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_on_single_frames_and_writes_all_its_layers(config, tmp_path):
    file = tmp_path / "stills.safetensors"
    assert train_stills(config, file) == STEPS
    model = load_model(config.model)
    found = read_lora(file, model.network)
    assert sorted(found.pairs) == lora_targets(model.network)
    batches = draws(Stills.read(config, model), model, 16, seed=99)
    held_out = [next(batches) for _ in range(3)]

    def loss() -> float:
        with torch.no_grad():
            return float(sum(denoising_loss(model, batch) for batch in held_out))

    before = loss()
    add_lora(model.network, RANK, RANK)
    load_lora_state(model.network, found.pairs)
    assert loss() < 0.95 * before


def test_a_step_lora_below_is_in_the_weights_and_not_in_what_is_trained(config, tmp_path):
    plain = load_model(config.model)
    step = random_lora(plain, tmp_path / "step.safetensors", 1)
    model = open_model(config, [step.path])
    before, after = base_modules(plain.network), base_modules(model.network)
    for path, module in before.items():
        pair = step.pairs.get(path)
        expected = module.weight if pair is None else module.weight + pair.delta()
        assert torch.equal(after[path].weight, expected)
        assert not after[path].weight.requires_grad
    short = with_overrides(config, {"steps": 2})
    train_stills(short, tmp_path / "a.safetensors", [step.path])
    train_stills(short, tmp_path / "b.safetensors")
    a, b = (read_lora(tmp_path / f"{name}.safetensors", plain.network).pairs for name in "ab")
    assert any(not torch.equal(a[path].up, b[path].up) for path in a), "the loss sees it"


def test_stacked_loras_are_exactly_the_sum_of_their_updates(config, tmp_path):
    model = load_model(config.model)
    loras = [random_lora(model, tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    modules = base_modules(model.network)
    before = {path: module.weight.clone() for path, module in modules.items()}
    with merge_all(model, loras):
        for path, weight in before.items():
            expected = weight.clone()
            for lora in loras:
                if path in lora.pairs:
                    expected += lora.pairs[path].delta()
            assert torch.equal(modules[path].weight, expected)
    assert all(torch.equal(modules[path].weight, weight) for path, weight in before.items())
