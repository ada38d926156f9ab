"""Every form of a LoRA turns into every other and back without changing a bit."""

from __future__ import annotations

import pytest
import torch
from official import MODULES, official
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sd15_files import build_parts, original_motion, unet_renames

from trainer.cli.main import main
from trainer.cli.results import FORMS
from trainer.families.unet import IMAGE_LAYERS
from trainer.lora.convert import TARGETS, convert, read_source
from trainer.lora.export import export_kohya
from trainer.lora.formats import read_lora
from trainer.lora.names import (
    module_path,
    motion_lora_name,
    motion_lora_path,
    webui_name,
    with_paths,
)
from trainer.lora.pairs import LoraError, LoraPair, kohya_name, layers_of
from trainer.models.motion_module import read_motion_module

TOLD = {"mcm.family": "animatediff", "mcm.base_model": "tiny", "modelspec.title": "Größe"}


def narrow(shape):
    """A sixteenth of every width: the official layers at tiny size."""
    return tuple(max(1, side // 16) if side > 3 else side for side in shape)


def random_pairs(name, dtype=torch.float16, rank=2, alpha=1.0):
    generator = torch.Generator().manual_seed(0)
    found = {}
    for path, (down, up) in official(name, rank).items():
        parts = [torch.randn(narrow(shape), generator=generator).to(dtype) for shape in (down, up)]
        found[path] = LoraPair(parts[0], parts[1], alpha)
    return found


@pytest.fixture(scope="module")
def pairs():
    return random_pairs("animatediff")


@pytest.fixture
def kohya(pairs, tmp_path):
    path = tmp_path / "ink.safetensors"
    export_kohya(pairs, path, TOLD, dtype="keep")
    return path


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, pair in wanted.items():
        other = found[path]
        assert (other.down.dtype, other.up.dtype) == (pair.down.dtype, pair.up.dtype), path
        assert torch.equal(other.down, pair.down) and torch.equal(other.up, pair.up), path
        assert other.alpha == pair.alpha, path


@pytest.mark.parametrize("name", MODULES)
def test_underscore_names_need_no_model(name):
    layers = layers_of(official(name))
    for path in official(name):
        assert module_path(kohya_name(path), layers) == path
    assert module_path("lora_te_text_model_encoder_layers_0_mlp_fc1", layers) is None
    assert module_path("lora_unet_Down__x", layers) is None


def test_original_names_of_image_and_motion_layers():
    renames = dict(unet_renames())
    motion = 0
    for path in official("animatediff"):
        if ".motion_modules." in path:
            motion += 1
            name = motion_lora_name(path)
            assert name.endswith("_lora") and ".temporal_transformer." in name
            assert motion_lora_path(name.removesuffix("_lora")) == path
            continue
        assert module_path(webui_name(path), IMAGE_LAYERS) == path
        if ".attentions." in path:
            start = next(ours for ours in renames if path.startswith(ours))
            assert webui_name(path) == kohya_name(renames[start] + path[len(start) :])
    assert motion == 530 - len([p for p in official("animatediff") if "motion" not in p]) > 100
    assert webui_name("down_blocks.1.resnets.0.conv1") == "lora_unet_input_blocks_4_0_in_layers_2"
    with pytest.raises(LoraError, match="not a layer of Stable Diffusion 1.5"):
        webui_name("down_blocks.0.temp_attentions.0.proj_in")


@pytest.mark.parametrize(
    ("dtype", "alpha"),
    [(torch.float16, 1.0), (torch.float32, 2.0), (torch.float32, 0.5), (torch.float16, 0.7)],
)
def test_the_round_trip_through_every_form_is_exact(dtype, alpha, tmp_path):
    alpha = float(torch.tensor(alpha))  # files hold it in fp32
    wanted = random_pairs("animatediff", dtype, alpha=alpha)
    source = tmp_path / "a.safetensors"
    export_kohya(wanted, source, TOLD, dtype="keep")
    for number, to in enumerate(("peft", "diffusers", "animatediff-evolved", "peft", "kohya")):
        folder = to in ("peft", "animatediff-evolved")
        out = tmp_path / (f"{number} ü" if folder else f"{number} ü.safetensors")
        assert len(convert(source, out, to).text().splitlines()) >= 1
        found = read_source(out)
        assert_same(found.pairs, wanted)
        assert found.metadata == TOLD
        source = out
    assert source.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_modelscope_loras_round_trip_too(tmp_path):
    wanted = random_pairs("modelscope", torch.bfloat16, alpha=2.0)
    export_kohya(wanted, tmp_path / "a.safetensors", {}, dtype="keep")
    convert(tmp_path / "a.safetensors", tmp_path / "peft", "peft")
    convert(tmp_path / "peft", tmp_path / "b.safetensors", "diffusers")
    assert_same(read_source(tmp_path / "b.safetensors").pairs, wanted)


def test_diffusers_itself_loads_the_file(tmp_path):
    from diffusers import UNetMotionModel
    from peft.tuners.lora import LoraLayer

    from trainer.lora.adapter import add_lora, lora_state

    def fresh():
        torch.manual_seed(0)
        return UNetMotionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        )

    unet = fresh()
    add_lora(unet, 2, 1.0)
    wanted = lora_state(unet)
    export_kohya(wanted, tmp_path / "a.safetensors", {}, dtype="keep")
    convert(tmp_path / "a.safetensors", tmp_path / "d.safetensors", "diffusers")
    other = fresh()
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        assert "lora_adapter_metadata" in file.metadata()
    other.load_lora_adapter(tmp_path, weight_name="d.safetensors", prefix="unet")
    layers = {n: m for n, m in other.named_modules() if isinstance(m, LoraLayer)}
    assert layers.keys() == wanted.keys()
    for path, layer in layers.items():
        (scale,) = layer.scaling.values()
        (down,) = layer.lora_A.values()
        assert scale == 0.5 and torch.equal(down.weight, wanted[path].down), path


def test_webui_gets_the_image_layers(kohya, pairs, tmp_path):
    done = convert(kohya, tmp_path / "webui.safetensors", "kohya-webui")
    spatial = {path: pair for path, pair in pairs.items() if ".motion_modules." not in path}
    assert f"{len(pairs) - len(spatial)} layers of the motion module were left out" in done.text()
    keys = load_file(tmp_path / "webui.safetensors").keys()
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k.lora_down.weight" in keys
    assert "lora_unet_output_blocks_5_2_conv.lora_up.weight" in keys
    assert not any("motion" in key or "down_blocks" in key for key in keys)
    assert_same(read_source(tmp_path / "webui.safetensors").pairs, spatial)
    assert_same(read_lora(tmp_path / "webui.safetensors", pairs).pairs, spatial)


def evolved_key(key):
    """Which weight AnimateDiff-Evolved changes with a motion LoRA's entry."""
    for piece in ("processor.", "_lora", "down.", "up."):
        key = key.replace(piece, "")
    return key if "to_out.0." in key else key.replace("to_out.", "to_out.0.")


def test_animatediff_evolved_gets_both_halves(tmp_path):
    parts = build_parts()
    module = tmp_path / "mm.safetensors"
    save_file(original_motion(parts.adapter), module)
    wanted = {
        path: pair
        for path, pair in motion_pairs(parts.adapter).items()
        if path != "down_blocks.0.attentions.0.proj_in"
    }
    spatial = {"down_blocks.0.attentions.0.proj_in": random_pair((32, 32, 1, 1))}
    export_kohya({**wanted, **spatial}, tmp_path / "a.safetensors", TOLD, dtype="keep")
    convert(tmp_path / "a.safetensors", tmp_path / "out", "animatediff-evolved",
            motion_module=module)  # fmt: skip
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {f"out-{p}.safetensors" for p in ("spatial", "motion-lora", "motion-module")}
    lora = load_file(tmp_path / "out" / "out-motion-lora.safetensors")
    merged = load_file(tmp_path / "out" / "out-motion-module.safetensors")
    base = load_file(module)
    assert merged.keys() == base.keys()
    changed = set()
    for key, down in lora.items():
        assert "temporal" in key
        if "up." in key:
            continue
        weight = evolved_key(key)
        delta = lora[key.replace(".down.", ".up.")].float() @ down.float()
        torch.testing.assert_close(merged[weight], base[weight] + delta, rtol=0, atol=1e-6)
        changed.add(weight)
    assert len(changed) == len(wanted)
    assert all(torch.equal(merged[key], base[key]) for key in base.keys() - changed)
    assert read_motion_module(tmp_path / "out" / "out-motion-module.safetensors").max_frames == 32
    assert_same(read_source(tmp_path / "out").pairs, {**wanted, **spatial})


def random_pair(shape, rank=2, alpha=1.0):
    wide, ones = shape[2:], (1,) * len(shape[2:])
    down = torch.randn(rank, shape[1], *wide)
    return LoraPair(down, torch.randn(shape[0], rank, *ones), alpha)


def motion_pairs(adapter):
    """A LoRA on every linear layer of a motion adapter."""
    torch.manual_seed(0)
    return {
        name: random_pair(tuple(layer.weight.shape))
        for name, layer in adapter.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def test_alphas_that_would_round_stay_close_and_half_precision_stays_exact(tmp_path):
    pair = random_pair((32, 32), alpha=0.7)
    name = "down_blocks.0.motion_modules.0.proj_in"
    spatial = {"down_blocks.0.attentions.0.proj_in": random_pair((32, 32, 1, 1))}
    export_kohya({name: pair, **spatial}, tmp_path / "a.safetensors", {}, dtype="keep")
    convert(tmp_path / "a.safetensors", tmp_path / "out", "animatediff-evolved")
    back = read_source(tmp_path / "out").pairs[name]
    torch.testing.assert_close(back.delta(), pair.delta(), rtol=1e-6, atol=1e-7)


def test_what_cannot_be_converted_is_refused(kohya, pairs, tmp_path):
    def refused(message, *arguments, **options):
        with pytest.raises(LoraError, match=message):
            convert(*arguments, **options)

    out = tmp_path / "out"
    refused("not a known format; use comfyui, kohya,", kohya, out, "gguf")
    refused("`dtype`='int8'", kohya, out, "peft", dtype="int8")
    refused("must end in .safetensors", kohya, out, "kohya")
    refused("must end in .safetensors", kohya, out, "diffusers")
    refused("only used with 'animatediff-evolved'", kohya, out, "peft", motion_module=kohya)
    refused("exists already", kohya, tmp_path, "animatediff-evolved")
    image = {path: pair for path, pair in pairs.items() if ".motion_modules." not in path}
    export_kohya(image, tmp_path / "image.safetensors", {})
    refused("0 motion layers", tmp_path / "image.safetensors", out, "animatediff-evolved")
    export_kohya(random_pairs("modelscope"), tmp_path / "ms.safetensors", {})
    for to in ("kohya-webui", "animatediff-evolved"):
        refused("have layers for this format", tmp_path / "ms.safetensors", out.with_suffix(
            ".safetensors"), to)  # fmt: skip
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_a_motion_module_of_another_size_is_refused(kohya, tmp_path):
    module = tmp_path / "mm.safetensors"
    save_file(original_motion(build_parts().adapter), module)
    with pytest.raises(LoraError, match="Motion module 'mm' has no layer"):
        convert(kohya, tmp_path / "out", "animatediff-evolved", motion_module=module)
    assert not (tmp_path / "out").exists()


def test_strange_names_and_damaged_notes_are_refused(pairs, tmp_path):
    with pytest.raises(LoraError, match="is not a layer of a UNet"):
        with_paths({"lora_unet_Strange__name": next(iter(pairs.values()))})
    export_kohya(pairs, tmp_path / "a.safetensors", {"mcm.folded_alphas": "nonsense"})
    with pytest.raises(LoraError, match="is damaged"):
        read_source(tmp_path / "a.safetensors")


def test_the_command_writes_the_form(kohya, pairs, tmp_path, capsys):
    assert set(FORMS) == set(TARGETS)
    out = tmp_path / "peft"
    assert main(["convert", str(kohya), str(out), "--to", "peft", "--dtype", "fp32"]) == 0
    assert f"({len(pairs)} modules)" in capsys.readouterr().out
    found = read_lora(out)
    assert found.pairs.keys() == pairs.keys()
    assert {pair.down.dtype for pair in found.pairs.values()} == {torch.float32}
    assert main(["convert", str(kohya), str(out), "--to", "peft"]) == 1
    assert "exists already" in capsys.readouterr().err
