"""NaN and flat clips are errors that name the cause, wherever clips are made."""

from __future__ import annotations

import pytest
import torch

from trainer.cli.main import main
from trainer.evaluate.generate import generate_clips
from trainer.families import load_model
from trainer.models.sound import BrokenOutputError, check_latents, check_pixels

PROMPTS = ["a red star growing"]


@pytest.fixture
def model(untrained_folder):
    return load_model(str(untrained_folder))


def spoil(network, name):
    with torch.no_grad():
        dict(network.named_parameters())[name].view(-1)[0] = float("nan")


def test_a_unet_of_nan_is_named_with_its_weight(model):
    spoil(model.network, "conv_out.weight")
    with pytest.raises(BrokenOutputError, match=r"sampled clip .*1 of \d+ weights .*conv_out.wei"):
        generate_clips(model, PROMPTS, steps=1)


def test_a_decoder_of_nan_is_named_with_its_weight(model):
    name = [name for name, _ in model.codec.vae.named_parameters() if "decoder" in name][-1]
    spoil(model.codec.vae, name)
    with pytest.raises(BrokenOutputError, match=rf"decoded clip .*AutoencoderTiny .*{name}"):
        generate_clips(model, PROMPTS, steps=1)


def test_half_precision_is_named_where_the_weights_are_whole(model):
    latents = torch.full((1, 4, 2, 2, 2), float("inf"))
    with pytest.raises(BrokenOutputError, match="computes in fp16.*Use bf16 or fp32"):
        check_latents(latents, model.network.half())
    with pytest.raises(BrokenOutputError, match="strength or the guidance scale is too high"):
        check_latents(latents, model.network.float())


@pytest.mark.parametrize(("level", "colour"), [(-1.0, "black"), (1.0, "white"), (0.2, "flat")])
def test_a_flat_clip_is_no_clip(model, level, colour):
    pixels = torch.rand(2, 3, 2, 8, 8)
    check_pixels(pixels, model.codec.vae)
    pixels[1] = level
    with pytest.raises(BrokenOutputError, match=f"{colour}.* in every pixel"):
        check_pixels(pixels, model.codec.vae)


def test_sample_writes_no_black_file(untrained_folder, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "kaputt ö"
    shutil.copytree(untrained_folder, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, file)
    out = tmp_path / "clip.webp"
    argv = ["sample", "--model", str(folder), "--prompt", "x", "--steps", "1", "--out", str(out)]
    assert main(argv) == 1
    shown = capsys.readouterr().err
    assert "error: The sampled clip holds NaN" in shown and "conv_in.bias" in shown
    assert not out.exists()
