"""A run on Wan starts from a step LoRA as circulated: exactly its function, whole differences
included; what does not fit is refused by name.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import wan_files
from safetensors.torch import load_file, save_file

from trainer.cli.main import main
from trainer.config import load_config
from trainer.distill.export import export_student
from trainer.distill.sources import add_adapter
from trainer.distill.stored import load_student
from trainer.families import load_model
from trainer.families.wan import FAMILY
from trainer.lora.adapter import (
    adapter_at,
    adapter_disabled,
    add_lora,
    apply_lora,
    lora_state,
)
from trainer.lora.convert import convert, read_source
from trainer.lora.export import export_file
from trainer.lora.few_step import fit_start
from trainer.lora.formats import read_lora
from trainer.lora.inspect import inspect_file
from trainer.lora.names import with_paths
from trainer.lora.pairs import LoraError, kohya_name
from trainer.lora.whole import add_whole, merged, whole_of
from trainer.models.wan import diffusers_name
from trainer.readiness.parts import _start_lora
from trainer.runs.folder import Run

LAYERS = [f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"] + ["ffn.0", "ffn.2"]
TOP = ("time_projection.1", "text_embedding.0", "head.head")
FORMS = ("comfyui", "lora_A", "bare", "kohya", "fun", "diffusers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")


@pytest.fixture(scope="module")
def file(models):
    return next((models / "diffusion_models").iterdir())


def pairs_of_step(alpha=True, top=True):
    """Original layer -> (down, up, alpha), of ranks that differ from layer to layer."""
    state = wan_files.original(wan_files.build_transformer().state_dict())
    g = torch.Generator().manual_seed(4)
    names = [f"blocks.{b}.{layer}" for b in range(2) for layer in LAYERS] + list(TOP if top else ())
    found = {}
    for number, name in enumerate(names):
        out, width = state[f"{name}.weight"].shape
        rank = (4, 2, 6)[number % 3]
        down = torch.randn(rank, width, generator=g) * 0.1
        up = torch.randn(out, rank, generator=g) * 0.1
        found[name] = (down, up, rank / 2 if alpha else float(rank))
    return found


def whole_of_step():
    """Differences of norms, biases, modulations and the input, by the keys of such files."""
    state = wan_files.original(wan_files.build_transformer().state_dict())
    g = torch.Generator().manual_seed(5)

    def drawn(name):
        return torch.randn(state[name].shape, generator=g) * 0.1

    found = {"head.modulation.diff": drawn("head.modulation"),
             "patch_embedding.diff": drawn("patch_embedding.weight"),
             "patch_embedding.diff_b": drawn("patch_embedding.bias"),
             "head.head.diff_b": drawn("head.head.bias")}  # fmt: skip
    for b in range(2):
        block = f"blocks.{b}"
        found[f"{block}.self_attn.norm_q.diff"] = drawn(f"{block}.self_attn.norm_q.weight")
        found[f"{block}.norm3.diff"] = drawn(f"{block}.norm3.weight")
        found[f"{block}.norm3.diff_b"] = drawn(f"{block}.norm3.bias")
        found[f"{block}.ffn.2.diff_b"] = drawn(f"{block}.ffn.2.bias")
        found[f"{block}.diff_m"] = drawn(f"{block}.modulation")
    return found


def written(pairs, form, whole=None):
    """The LoRA with the keys of one of the forms in circulation."""
    tensors = {}
    for layer, (down, up, alpha) in pairs.items():
        peft = form in ("lora_A", "diffusers")
        halves = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
        name = {
            "comfyui": f"diffusion_model.{layer}",
            "lora_A": f"diffusion_model.{layer}",
            "bare": layer,
            "kohya": kohya_name(layer),
            "fun": kohya_name(layer).replace("lora_unet_", "lora_unet__"),
            "diffusers": f"transformer.{diffusers_name(layer)}",
        }[form]
        tensors[f"{name}.{halves[0]}.weight"], tensors[f"{name}.{halves[1]}.weight"] = down, up
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    start = "" if form == "bare" else "diffusion_model."
    return {k: v.contiguous() for k, v in tensors.items()} | {
        start + key: value for key, value in (whole or {}).items()
    }


def with_step(pairs, whole):
    """A transformer with the step LoRA in its weights, by plain arithmetic."""
    network = wan_files.build_transformer().half().float()  # as the file holds it
    own = dict(network.named_parameters())
    with torch.no_grad():
        for layer, (down, up, alpha) in pairs.items():
            own[f"{diffusers_name(layer)}.weight"] += up @ down * (alpha / len(down))
        for key, value in whole.items():
            layer, _, kind = key.rpartition(".")
            if kind != "diff_m" and layer != "head.modulation":  # ComfyUI applies none of these
                part = "bias" if kind == "diff_b" else "weight"
                own[f"{diffusers_name(layer)}.{part}"] += value
    return network


def passed(network):
    g = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 16, 2, 4, 4, generator=g), torch.randn(1, 8, 64, generator=g)
    with torch.no_grad():
        return network(latents, torch.tensor([900.0]), encoder_hidden_states=text).sample


def started(file, lora, rank=3):
    model = load_model(str(file))
    said = []
    settings = {"model": str(file), "start_from": str(lora), "lora.rank": rank}
    add_adapter(load_config(overrides=settings), model, said.append)
    return model, "\n".join(said)


@pytest.mark.parametrize("form", FORMS)
def test_the_student_starts_at_its_function_and_the_teacher_stays_the_base(form, file, tmp_path):
    pairs = pairs_of_step()
    whole = whole_of_step() if form in ("comfyui", "lora_A", "bare") else {}
    save_file(written(pairs, form, whole), tmp_path / "step ü.safetensors")
    base = passed(load_model(str(file)).network)
    model, said = started(file, tmp_path / "step ü.safetensors")
    wanted = passed(with_step(pairs, whole))
    assert (wanted - base).abs().max() > 0.05
    torch.testing.assert_close(passed(model.network), wanted, rtol=1e-4, atol=1e-4)
    with adapter_disabled(model.network):
        assert torch.equal(passed(model.network), base)
        with adapter_disabled(model.network):
            pass
        assert torch.equal(passed(model.network), base)
    torch.testing.assert_close(passed(model.network), wanted, rtol=1e-4, atol=1e-4)
    with adapter_at(model.network, 0.0):
        torch.testing.assert_close(passed(model.network), base)
    ranks = {path: pair.rank for path, pair in lora_state(model.network).items()}
    assert ranks["blocks.0.attn1.to_q"] == 4 and ranks["blocks.0.attn1.to_k"] == 3
    assert "taken for a step LoRA: the file does not say how it was made" in said


def test_a_part_of_the_layers_is_enough(file, tmp_path):
    pairs = {k: v for k, v in pairs_of_step(top=False).items() if "self_attn" in k}
    save_file(written(pairs, "comfyui"), tmp_path / "step.safetensors")
    model, _ = started(file, tmp_path / "step.safetensors")
    torch.testing.assert_close(
        passed(model.network), passed(with_step(pairs, {})), rtol=1e-4, atol=1e-4
    )
    assert len(lora_state(model.network)) == 20


def test_whole_differences_work_beside_fp8_weights(models, tmp_path):
    place = models / "diffusion_models" / "fp8.safetensors"
    state = wan_files.original(wan_files.build_transformer().state_dict())
    save_file(wan_files.scaled_fp8(state), place)
    try:
        save_file(written(pairs_of_step(), "comfyui", whole_of_step()), tmp_path / "s.safetensors")
        plain = passed(load_model(str(place)).network)
        model, _ = started(place, tmp_path / "s.safetensors")
        student = passed(model.network)
        with adapter_disabled(model.network):
            assert torch.equal(passed(model.network), plain)
        other = load_model(str(place))
        found = read_lora(tmp_path / "s.safetensors", other.network)
        whole = {k: v for k, v in found.differences.items() if "scale_shift" not in k}
        undo = apply_lora(other.network, found.pairs, 1.0, whole)
        torch.testing.assert_close(passed(other.network), student, rtol=1e-3, atol=1e-3)
        undo()
        assert torch.equal(passed(other.network), plain)
    finally:
        place.unlink()


@pytest.fixture(scope="module")
def run(file, style_images, tmp_path_factory):
    """A run of one step from a step LoRA, which is gone afterwards."""
    folder = tmp_path_factory.mktemp("runs")
    save_file(written(pairs_of_step(), "comfyui", whole_of_step()), folder / "step.safetensors")
    (folder / "p.txt").write_text("a red star moving up\na blue circle\n", encoding="utf-8")
    given = {
        "--model": file, "--images": style_images, "--prompts": folder / "p.txt", "--steps": 1,
        "--data.frames": 5, "--data.height": 32, "--data.width": 32, "--data.library-clips": 2,
        "--data.batch-size": 1, "--data.min-side": 16, "--lora.rank": 2, "--preview.every": 5,
        "--preview.count": 1, "--preview.steps": "1", "--preview.teacher-steps": 2,
        "--adversarial.features": "efficientnet-lite0", "--hardware.device": "cpu",
        "--hardware.gradient-checkpointing": "true", "--trajectory.ddim-timesteps": 8,
        "--data.library-steps": 4, "--start-from": folder / "step.safetensors",
        "--run": folder / "wan",
    }  # fmt: skip
    assert main(["train", *(f"{name}={value}" for name, value in given.items())]) == 0
    (folder / "step.safetensors").rename(folder / "gone.safetensors")
    return Run.open(folder / "wan")


def test_the_export_is_step_and_style_in_one_file(run, file):
    names = set(load_file(run.export_path))
    assert "diffusion_model.blocks.1.norm3.diff_b" in names
    assert not any("modulation" in name for name in names)
    assert "diffusion_model.time_projection.1.lora_A.weight" in names
    student = load_student(run)
    with student.ema.applied():
        wanted = passed(student.model.network)
    fresh = load_model(str(file))
    found = read_lora(run.export_path, fresh.network)
    assert found.metadata["mcm.started_from"] == "step.safetensors"
    base = passed(fresh.network)
    apply_lora(fresh.network, found.pairs, 1.0, found.differences)
    difference = (passed(fresh.network) - wanted).norm() / (wanted - base).norm()
    assert difference < 1e-2  # the file is fp16
    assert export_student(run, student, 1, run.path / "again.safetensors", None).modules == 23


def test_a_linear_with_a_whole_difference_is_trained_exported_and_started_from_again(
    file, tmp_path
):
    """The export holds its update in one place, so that it has no pair."""
    pairs = pairs_of_step(alpha=False, top=False)
    g = torch.Generator().manual_seed(6)
    layer = "blocks.0.self_attn.q"
    del pairs[layer]
    whole = {f"{layer}.diff": torch.randn(128, 128, generator=g) * 0.05}
    save_file(written(pairs, "comfyui", whole), tmp_path / "step.safetensors")
    model, _ = started(file, tmp_path / "step.safetensors", rank=6)
    wanted = passed(model.network)
    exported = merged(lora_state(model.network), whole_of(model.network).differences)
    told = {"mcm.family": "wan", "mcm.prediction_type": "velocity", "mcm.version": "1"}
    out = tmp_path / "ours.safetensors"
    done = export_file(exported[0], out, told, dtype="fp32", differences=exported[1])
    assert (done.modules, done.differences) == (19, 1)
    again, said = started(file, out, rank=6)
    torch.testing.assert_close(passed(again.network), wanted, rtol=1e-4, atol=1e-4)
    assert len(lora_state(again.network)) == 20, "the layer can still learn"
    assert "19 layers, rank 6, 1 whole difference" in said


def test_a_file_of_whole_differences_alone_is_a_start_too(file, tmp_path):
    whole = whole_of_step()
    save_file(written({}, "comfyui", whole), tmp_path / "whole.safetensors")
    model, said = started(file, tmp_path / "whole.safetensors")
    torch.testing.assert_close(
        passed(model.network), passed(with_step({}, whole)), rtol=1e-4, atol=1e-4
    )
    assert "14 whole differences" in said and "rank" not in said
    config = load_config(
        overrides={"model": str(file), "start_from": str(tmp_path / "whole.safetensors")}
    )
    assert _start_lora(config, load_model(str(file)))[0].state == "note"
    fresh = load_model(str(file))
    found = read_lora(tmp_path / "whole.safetensors", fresh.network)
    fitting = {k: v for k, v in found.differences.items() if "scale_shift" not in k}
    undo = apply_lora(fresh.network, found.pairs, 1.0, fitting)
    assert torch.allclose(passed(fresh.network), passed(model.network), rtol=1e-4, atol=1e-4)
    undo()
    wrong = {"blocks.0.norm3.diff": torch.ones(64)}
    save_file(written({}, "comfyui", wrong), tmp_path / "wrong.safetensors")
    with pytest.raises(LoraError, match="do not fit the loaded model: blocks.0.norm2.weight"):
        started(file, tmp_path / "wrong.safetensors")


def test_a_run_whose_layers_all_have_whole_differences_can_be_exported(file, tmp_path):
    network = load_model(str(file)).network
    whole = {
        f"{diffusers_name(layer)}.weight": up @ down
        for layer, (down, up, _) in pairs_of_step(top=False).items()
    }
    add_lora(network, 2, 2)
    add_whole(network, whole)
    pairs, differences = merged(lora_state(network), whole_of(network).differences)
    assert not pairs
    out = tmp_path / "ours.safetensors"
    done = export_file(pairs, out, {"mcm.family": "wan"}, differences=differences)
    assert (done.modules, done.differences) == (0, 20)
    report = inspect_file(out)
    assert (report.family, report.rank, report.dtypes) == ("wan", "none", ("float16",))
    assert "20 whole differences" in report.text() and "an unknown size of Wan" in report.base
    with pytest.raises(LoraError, match="There is nothing to export"):
        export_file({}, tmp_path / "none.safetensors", {})


def test_whole_differences_are_cast_with_the_rest(tmp_path):
    save_file(written(pairs_of_step(), "comfyui", whole_of_step()), tmp_path / "a.safetensors")
    for dtype, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        out = tmp_path / f"{dtype}.safetensors"
        done = convert(tmp_path / "a.safetensors", out, "comfyui", dtype=dtype)
        kinds = {v.dtype for k, v in load_file(out).items() if not k.endswith(".alpha")}
        assert kinds == {kind}
        assert "14 whole differences" in done.text()
    convert(tmp_path / "a.safetensors", tmp_path / "k.safetensors", "comfyui")
    assert read_lora(tmp_path / "k.safetensors").differences["proj_out.bias"].dtype == torch.float32
    large = {"blocks.0.norm3.diff": torch.full((128,), 1e5)}
    save_file(written(pairs_of_step(), "comfyui", large), tmp_path / "l.safetensors")
    with pytest.raises(LoraError, match="norm2.weight` has values too large for fp16; export with"):
        convert(tmp_path / "l.safetensors", tmp_path / "m.safetensors", "comfyui", dtype="fp16")


def test_modulations_by_underscores_are_read(tmp_path):
    modulation = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(7))
    tensors = written(pairs_of_step(), "kohya") | {"lora_unet_blocks_1.diff_m": modulation}
    save_file(tensors, tmp_path / "k.safetensors")
    found = read_lora(tmp_path / "k.safetensors").differences
    assert list(found) == ["blocks.1.scale_shift_table"]
    assert torch.equal(found["blocks.1.scale_shift_table"], modulation)


def test_a_run_goes_on_without_the_lora_that_it_started_from(run, tmp_path, capsys):
    """And without its remarks, which the log has already."""
    first = run.log_path.read_text(encoding="utf-8")
    assert first.count("taken for a step LoRA") == first.count("Left out: 3 differences") == 1
    assert "23 layers and 11 whole differences" in first
    again = Run.open(shutil.copytree(run.path, tmp_path / "wan again"))
    before = load_file(again.checkpoints / "step-000001" / "lora.safetensors")
    capsys.readouterr()
    assert main(["resume", str(again.path), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "Resumed at step 1" in said and "Nothing is missing." in said
    assert "step LoRA" not in said and "Left out" not in said and "caption loss" not in said
    after = load_file(again.checkpoints / "step-000002" / "lora.safetensors")
    assert before.keys() == after.keys()
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert read_lora(again.export_path).differences.keys() == (
        read_lora(run.export_path).differences.keys()
    )


def test_what_does_not_fit_is_refused_by_name(file, tmp_path, capsys):
    large = {
        f"blocks.0.{layer}": (torch.ones(1, 5120), torch.ones(5120, 1), 1.0) for layer in LAYERS
    }
    cases = {
        "made for Wan 2.1 .*14B": written(large, "comfyui"),
        "image-to-video model": written(pairs_of_step(), "comfyui")
        | {"diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": torch.ones(1, 128),
           "diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight": torch.ones(128, 1)},
        "norm_q.weight .model .128,., LoRA .64,": written(pairs_of_step(), "comfyui")
        | {"diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(64)},
        "low-rank update and a whole one": written(pairs_of_step(), "comfyui")
        | {"diffusion_model.blocks.0.ffn.0.diff": torch.ones(96, 128)},
        "NaN": written(pairs_of_step(), "comfyui")
        | {"diffusion_model.blocks.0.ffn.0.diff_b": torch.full((96,), torch.nan)},
    }  # fmt: skip
    for number, (message, tensors) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(LoraError, match=message):
            started(file, path)
        config = load_config(overrides={"model": str(file), "start_from": str(path)})
        assert _start_lora(config, load_model(str(file)))[0].state == "bad"


def test_the_check_says_what_it_is_and_advises_one(file, tmp_path):
    model = load_model(str(file))
    path = tmp_path / "step.safetensors"
    save_file(written(pairs_of_step(), "comfyui", whole_of_step()), path)
    config = load_config(overrides={"model": str(file), "start_from": str(path)})
    said = _start_lora(config, model)[0]
    assert (
        said.state == "note"
        and "Left out: 3 differences" in said.text
        and "14 whole differences" in said.text
        and "a step LoRA" in said.text
    )
    advice = _start_lora(load_config(overrides={"model": str(file)}), model)[0]
    assert advice.state == "note" and "300 training steps" in advice.text
    assert fit_start(read_lora(path), model.network, FAMILY, "m", "f", "velocity").recorded is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_every_form_turns_into_every_other_and_back(dtype, tmp_path):
    pairs = {k: (d.to(dtype), u.to(dtype), a) for k, (d, u, a) in pairs_of_step().items()}
    save_file(written(pairs, "comfyui"), tmp_path / "0.safetensors")
    source, wanted = tmp_path / "0.safetensors", read_source(tmp_path / "0.safetensors").pairs
    for number, to in enumerate(("kohya", "peft", "diffusers", "comfyui", "diffusers", "kohya")):
        out = tmp_path / (f"{number}{to}" + ("" if to == "peft" else ".safetensors"))
        convert(source, out, to)
        found = read_source(out).pairs
        assert found.keys() == wanted.keys()
        for path, pair in wanted.items():
            assert torch.equal(found[path].down, pair.down) and found[path].down.dtype == dtype
            assert torch.equal(found[path].up, pair.up) and found[path].alpha == pair.alpha
        source = out
    assert "lora_unet_blocks_0_self_attn_q.lora_down.weight" in load_file(source)


def test_differences_go_where_they_can(tmp_path):
    save_file(written(pairs_of_step(), "bare", whole_of_step()), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "comfyui")
    one, two = (read_lora(tmp_path / f"{name}.safetensors").differences for name in "ab")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    for to in ("peft", "diffusers"):
        with pytest.raises(LoraError, match="14 whole differences .*cannot hold; use comfyui"):
            convert(tmp_path / "a.safetensors", tmp_path / to, to)
    with pytest.raises(LoraError, match="scale_shift_table` has no place in this form"):
        convert(tmp_path / "a.safetensors", tmp_path / "k.safetensors", "kohya")


def test_diffusers_and_peft_load_what_was_converted(tmp_path):
    from peft import PeftModel

    pairs = pairs_of_step()
    save_file(written(pairs, "comfyui"), tmp_path / "a.safetensors")
    wanted = passed(with_step(pairs, {}))
    convert(tmp_path / "a.safetensors", tmp_path / "d.safetensors", "diffusers")
    network = wan_files.build_transformer().half().float()
    network.load_lora_adapter(str(tmp_path), weight_name="d.safetensors", local_files_only=True)
    torch.testing.assert_close(passed(network), wanted, rtol=1e-4, atol=1e-4)
    convert(tmp_path / "a.safetensors", tmp_path / "peft", "peft")
    network = PeftModel.from_pretrained(
        wan_files.build_transformer().half().float(), tmp_path / "peft"
    )
    torch.testing.assert_close(passed(network), wanted, rtol=1e-4, atol=1e-4)


def test_inspect_tells_a_step_lora_and_every_file_of_a_base(models, file, tmp_path, capsys):
    save_file(written(pairs_of_step(), "comfyui", whole_of_step()), tmp_path / "s.safetensors")
    folder = wan_files.save_folder(tmp_path / "folder")
    fp8 = wan_files.scaled_fp8(wan_files.original(wan_files.build_transformer().state_dict()))
    save_file(fp8, tmp_path / "fp8.safetensors")
    prefixed = wan_files.original(
        wan_files.build_transformer().state_dict(), "model.diffusion_model."
    )
    wan_files.save_half(prefixed, tmp_path / "p.safetensors")
    wanted = {
        tmp_path / "s.safetensors": (
            "wan",
            "a step LoRA",
            "does not say",
            "ranks 2 to 6",
            "1 to 3",
        ),
        file: ("wan", "128 wide, 2 layers", "original names, float16", "20 of"),
        tmp_path / "fp8.safetensors": ("float8_e4m3fn", "scaled", "20 of"),
        tmp_path / "p.safetensors": ("after `model.diffusion_model.`", "20 of"),
        folder: ("diffusers folder, float32", "q, k, v and o of both attentions"),
        models / "text_encoders" / "umt5_tiny.safetensors": ("wan", "text encoder"),
        models / "vae" / "wan_2.1_vae.safetensors": ("wan", "a vae"),
        models / "vae_approx" / "taew2_1.safetensors": ("wan", "a tiny vae"),
    }
    for path, said in wanted.items():
        assert main(["inspect", str(path)]) == 0
        shown = capsys.readouterr().out
        assert all(piece in shown for piece in said), (path, shown)


def test_the_published_sizes_have_300_and_400_trained_modules(tmp_path):
    """Headers of full size, without contents on the disk."""
    from diffusers import WanTransformer3DModel

    from trainer.lora.inspect import inspect_base

    for heads, layers, hidden, size, count in (
        (12, 30, 8960, "1.3B", 300),
        (40, 40, 13824, "14B", 400),
    ):
        with torch.device("meta"):
            network = WanTransformer3DModel(
                num_attention_heads=heads, num_layers=layers, ffn_dim=hidden
            )
        header, end = {}, 0
        for name, value in wan_files.original(network.state_dict()).items():
            place = [end, end + value.numel() * 2]
            header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": place}
            end = place[1]
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        path = tmp_path / f"{size}.safetensors"
        with path.open("wb") as out:
            out.write(len(head).to_bytes(8, "little") + head)
            out.truncate(8 + len(head) + end)
        report = inspect_base(path)
        rows = dict(report.rows)
        assert (rows["family"], rows["size"]) == ("wan", size)
        assert rows["modules"].startswith(f"{count} of ")
        path.unlink()


def test_underscore_names_of_all_layers_become_paths():
    found = {kohya_name(name): None for name in (*TOP, "time_embedding.2", "patch_embedding")}
    paths = with_paths(found | {"lora_unet_blocks_0_ffn_0": None})
    assert set(paths) == {
        "condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1", "proj_out",
        "condition_embedder.time_embedder.linear_2", "patch_embedding", "blocks.0.ffn.net.0.proj",
    }  # fmt: skip
