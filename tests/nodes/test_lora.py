"""A few-step LoRA on a native MODEL equals PEFT's merge, whatever its file; or it is refused."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

FRAMES, SIDE = 8, 4


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture(scope="module")
def base(native, tiny_model):
    return native("model").load_native_model(tiny_model, "fp32")


@pytest.fixture
def unet(tiny_model):
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel.from_pretrained(tiny_model / "unet").requires_grad_(False)


@pytest.fixture(scope="module")
def pairs(tiny_model):
    """A LoRA of rank 4 and alpha 8 over every module the trainer covers."""
    from diffusers import UNet3DConditionModel

    from trainer.lora.adapter import add_lora, lora_parameters, lora_state

    unet = UNet3DConditionModel.from_pretrained(tiny_model / "unet")
    add_lora(unet, 4, 8.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return lora_state(unet)


def card(**changes):
    from trainer.lora.metadata import LoraCard

    facts = {
        "title": "Ink",
        "family": "modelscope",
        "base_model": "tiny",
        "base_hash": "",
        "base_license": "Apache-2.0",
        "frames": 8,
        "width": 32,
        "height": 32,
        "fps": 8,
    }
    return LoraCard(**{**facts, **changes})


@pytest.fixture(scope="module")
def loras(comfy, pairs, tmp_path_factory):
    """A models/loras folder with the same LoRA as a kohya file, a PEFT folder, a diffusers file."""
    import safetensors.torch

    from trainer.lora.export import export_kohya, export_peft
    from trainer.lora.metadata import build_metadata

    folder = tmp_path_factory.mktemp("models") / "Lö ras"
    told = build_metadata(card(trigger="in ink", steps=2, timestep_scaling=5.0), pairs)
    export_kohya(pairs, folder / "sub" / "ink.safetensors", told, dtype="fp32")
    export_kohya(pairs, folder / "silent.safetensors", {}, dtype="fp32")
    export_peft(pairs, folder / "official" / "unet_lora", dtype="fp32")
    tensors = {}
    for path, pair in pairs.items():
        tensors[f"unet.{path}.lora.down.weight"] = pair.down
        tensors[f"unet.{path}.lora.up.weight"] = pair.up
        tensors[f"unet.{path}.alpha"] = torch.tensor(pair.alpha)
    safetensors.torch.save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


@pytest.fixture(autouse=True)
def lora_folder(native, loras, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(native("lora"), "EXAMPLES", tmp_path / "bundled")

    entry = ([str(loras)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return loras


NAMES = (
    "official/unet_lora",
    "pytorch_lora_weights.safetensors",
    "silent.safetensors",
    "sub/ink.safetensors",
)


def merged(unet, folder, strength):
    """PEFT's own merge of the PEFT folder into ``unet``."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(unet, folder)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(strength)
    return model.merge_and_unload()


def weights(model):
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


@torch.inference_mode()
def forward(network):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(FRAMES, 4, SIDE, SIDE, generator=generator)
    text = torch.randn(1, 77, 64, generator=generator)
    return network(x, torch.full((FRAMES,), 300.0), context=text.expand(FRAMES, -1, -1))


def test_the_list_has_files_and_peft_folders_with_slashes(native):
    assert tuple(native("lora").list_loras()) == NAMES


def test_the_packs_own_loras_are_in_the_list_and_a_users_file_wins(native, loras, tmp_path):
    lora = native("lora")
    lora.EXAMPLES.mkdir()
    for name in ("mini-poster.safetensors", "silent.safetensors"):
        (lora.EXAMPLES / name).write_bytes(b"x")
    assert tuple(lora.list_loras()) == ("mini-poster.safetensors", *NAMES)
    assert lora.resolve_lora("mini-poster.safetensors").parent == lora.EXAMPLES
    assert lora.resolve_lora("silent.safetensors").parent == loras


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_equals_pefts_merge_and_is_undone_exactly(
    native, base, unet, loras, name, strength
):
    expected = merged(unet, loras / "official" / "unet_lora", strength).state_dict()
    before = weights(base)
    model = native("lora").load_lora(base, name, strength)
    model.patch_model()
    found = weights(model)
    model.unpatch_model()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert any(not torch.equal(found[key], before[key]) for key in before)
    assert all(torch.equal(value, before[key]) for key, value in weights(base).items())


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_with_little_memory_the_result_is_the_same(native, base, unet, loras, strength):
    model = native("lora").load_lora(base, "official/unet_lora", strength)
    network = model.model.diffusion_model
    model.patch_model()
    full = forward(network)
    model.unpatch_model()
    model.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=1)
    assert model.model.model_lowvram
    low = forward(network)
    model.detach()
    # Where weights lie in memory differs, and with it the order in which a kernel adds up.
    torch.testing.assert_close(low, full, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(full, forward(network), rtol=1e-3, atol=1e-3)
    wanted = merged(unet, loras / "official" / "unet_lora", strength)
    reference = network.__class__.from_config(unet.config)
    reference.load_state_dict(wanted.state_dict())
    torch.testing.assert_close(forward(reference), full, rtol=1e-5, atol=1e-6)


def test_cores_own_loader_reads_the_trainers_file_to_the_same_weights(native, base, loras):
    import comfy.sd
    import comfy.utils

    file = str(loras / "sub" / "ink.safetensors")
    theirs, _ = comfy.sd.load_lora_for_models(base, None, comfy.utils.load_torch_file(file), 0.5, 0)
    ours = native("lora").load_lora(base, "sub/ink.safetensors", 0.5)
    assert theirs.patches.keys() == ours.patches.keys()
    found = []
    for model in (theirs, ours):
        model.patch_model()
        found.append(weights(model))
        model.unpatch_model()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_the_sampling_of_the_metadata_comes_along(native, base):
    load = native("lora").load_lora
    official = load(base, "official/unet_lora", 1.0).get_model_object("model_sampling")
    assert (official.timestep_scaling, official.original_steps) == (4.0, 50)
    assert len(official.sigmas) == 50
    ours = load(base, "sub/ink.safetensors", 1.0).get_model_object("model_sampling")
    assert (ours.timestep_scaling, ours.original_steps) == (5.0, 50)
    assert not hasattr(base.get_model_object("model_sampling"), "original_steps")


def test_strength_0_is_the_base_model(native, base):
    model = native("lora").load_lora(base, "sub/ink.safetensors", 0.0)
    assert model.patches == {}
    assert not hasattr(model.get_model_object("model_sampling"), "original_steps")


def test_a_second_few_step_lora_is_added_and_the_log_says_what_becomes_of_it(native, base, caplog):
    load = native("lora").load_lora
    one = load(base, "sub/ink.safetensors", 0.5)
    assert "few-step LoRA on this MODEL" not in caplog.text
    two = load(one, "silent.safetensors", 0.5)
    assert {len(patches) for patches in one.patches.values()} == {1}
    assert {len(patches) for patches in two.patches.values()} == {2}
    assert "'silent.safetensors' is the second" in caplog.text
    assert "after 'sub/ink.safetensors'. Two of them do not mix" in caplog.text


def test_branches_of_a_graph_do_not_see_each_others_loras(native, base, caplog):
    for _ in range(2):
        native("lora").load_lora(base, "sub/ink.safetensors", 1.0)
    off = native("lora").load_lora(base, "silent.safetensors", 0.0)
    native("lora").load_lora(off, "sub/ink.safetensors", 1.0)
    assert "few-step LoRA on this MODEL" not in caplog.text


def test_a_style_lora_of_cores_loader_stacks_silently(
    comfy, native, base, pairs, own_folder, caplog
):
    import comfy.sd
    import comfy.utils

    some = {path: pair for path, pair in pairs.items() if "attentions" in path}
    file = own_folder / write(own_folder, "style.safetensors", some)
    write(own_folder, "ink.safetensors", pairs, **{"mcm.family": "modelscope"})
    weights_of = comfy.utils.load_torch_file(str(file))
    ours = native("lora").load_lora
    before, _ = comfy.sd.load_lora_for_models(base, None, weights_of, 1.0, 0)
    after, _ = comfy.sd.load_lora_for_models(
        ours(base, "ink.safetensors", 1.0), None, weights_of, 1.0, 0
    )
    for model in (ours(before, "ink.safetensors", 1.0), after):
        counts = [len(patches) for patches in model.patches.values()]
        assert counts.count(2) == len(some) and counts.count(1) == len(pairs) - len(some)
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert not [record for record in warned if record.name.startswith(comfy.__name__)]


def test_info_tells_what_the_file_recommends(native):
    found, summary = native("lora_info").lora_info("sub/ink.safetensors")
    assert (found.steps, found.guidance_scale, found.strength) == (2, 1.0, 1.0)
    assert (found.width, found.height, found.frames) == (32, 32, 8)
    assert found.trigger == "in ink"
    for part in ("Ink: a LoRA for tiny", "2 steps", "CFG 1,", "in ink", "Apache-2.0", "AutoV2"):
        assert part in summary
    assert "matches the tensors" in summary


def test_info_of_an_official_lora_has_the_papers_values(native):
    found, summary = native("lora_info").lora_info("official/unet_lora")
    assert (found.steps, found.guidance_scale, found.strength) == (4, 1.0, 1.0)
    assert (found.width, found.height, found.frames) == (64, 64, 8)  # recognised as the mini model
    assert found.trigger == ""
    assert "has no metadata" in summary


def test_a_lora_that_was_trained_again_is_loaded_again(comfy, lora_folder):
    node = import_module(f"{comfy.__name__}.nodes.lora").LoadLora
    file = lora_folder / "silent.safetensors"
    before = node.fingerprint_inputs(lora_name="silent.safetensors", strength=1.0, model=None)
    assert before == node.fingerprint_inputs(lora_name="silent.safetensors", strength=1.0)
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert node.fingerprint_inputs(lora_name="silent.safetensors", strength=1.0) != before
    assert node.fingerprint_inputs(lora_name="gone.safetensors", strength=1.0) == "missing"


def test_the_nodes_return_what_the_functions_do(comfy, base):
    nodes = import_module(f"{comfy.__name__}.nodes.lora")
    (model,) = nodes.LoadLora.execute(base, "sub/ink.safetensors", 1.0).result
    assert model.patches
    steps, cfg, trigger, *size, strength, summary, fps, shift = nodes.LoraInfo.execute(
        "sub/ink.safetensors"
    ).result
    assert fps == 8 and "only LoRAs for Wan have a shift" in shift.message
    assert (steps, cfg, trigger, size, strength) == (2, 1.0, "in ink", [32, 32, 8], 1.0)
    assert "Ink" in summary


def write(folder, name, pairs, **metadata):
    from trainer.lora.export import export_kohya

    export_kohya(pairs, folder / name, metadata, dtype="fp32")
    return name


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths,
        "loras",
        ([str(tmp_path)], folder_paths.supported_pt_extensions),
    )
    return tmp_path


def test_another_family_is_refused_by_name(native, base, pairs, own_folder):
    told = {"mcm.family": "animatediff", "mcm.base_model": "AnimateDiff v3"}
    name = write(own_folder, "other.safetensors", pairs, **told)
    with pytest.raises(ValueError, match="for 'animatediff' .*'AnimateDiff v3'.* MODEL is 'tiny'"):
        native("lora").load_lora(base, name, 1.0)


def test_weights_that_do_not_fit_are_refused_as_a_whole(native, base, pairs, own_folder):
    from trainer.lora.pairs import LoraPair

    wrong = dict(pairs)
    path = next(path for path in pairs if path.endswith("attn2.to_k") and "temp" not in path)
    wrong[path] = LoraPair(torch.zeros(4, 768), pairs[path].up, 8.0)
    name = write(own_folder, "wrong.safetensors", wrong)
    with pytest.raises(ValueError, match="does not fit the loaded model.*Load the base model"):
        native("lora").load_lora(base, name, 1.0)
    assert base.patches == {}


SIGNED = {"ss_network_module": "networks.lora", "modelspec.trigger_phrase": "in oil"}


def test_a_lora_that_another_trainer_signed_is_not_sampled_in_few_steps(
    native, base, pairs, own_folder
):
    name = write(own_folder, "oil.safetensors", pairs, **SIGNED)
    match = "not a few-step LoRA.*nothing in its metadata.*LoaderModelOnly"
    with pytest.raises(ValueError, match=match):
        native("lora").load_lora(base, name, 1.0)
    assert base.patches == {}


def test_a_lora_that_says_nothing_is_taken_as_official_and_the_log_says_so(
    native, base, loras, caplog
):
    native("lora").load_lora(base, "silent.safetensors", 1.0)
    assert "'silent.safetensors' has no metadata" in caplog.text
    assert "If it is a style LoRA" in caplog.text


def test_a_published_lora_is_known_by_its_form_and_rank(pairs, tmp_path):
    from trainer.lora.export import export_kohya, export_peft
    from trainer.lora.few_step import OFFICIAL, as_published, few_step_kind
    from trainer.lora.formats import read_lora
    from trainer.lora.pairs import LoraPair

    wide = {
        path: LoraPair(
            torch.zeros(64, *pair.down.shape[1:]),
            torch.zeros(pair.up.shape[0], 64, *pair.up.shape[2:]),
            64.0,
        )
        for path, pair in pairs.items()
    }
    export_peft(wide, tmp_path / "wide")
    export_peft(pairs, tmp_path / "narrow")
    export_kohya(wide, tmp_path / "wide.safetensors", {})
    found = [read_lora(tmp_path / name) for name in ("wide", "narrow", "wide.safetensors")]
    assert [few_step_kind(file) for file in found] == [OFFICIAL] * 3
    assert [as_published(file) for file in found] == [True, False, False]


@pytest.mark.parametrize("kept", ["attentions", "temp_attentions", "resnets"])
def test_a_part_of_the_layers_is_no_few_step_lora(pairs, own_folder, kept):
    from trainer.lora.few_step import few_step_kind
    from trainer.lora.formats import read_lora

    some = {path: pair for path, pair in pairs.items() if kept in path}
    name = write(own_folder, "some.safetensors", some)
    assert few_step_kind(read_lora(own_folder / name)) is None


def without_values(native, name):
    found, summary = native("lora_info").lora_info(name)
    numbers = (found.steps, found.guidance_scale, found.width, found.height, found.frames)
    assert numbers == (None,) * 5 and found.strength == 1.0
    assert "Not a few-step LoRA: it recommends no steps, CFG or size" in summary
    return found, summary


def test_info_recommends_nothing_for_a_style_lora(native, pairs, own_folder):
    some = {path: pair for path, pair in pairs.items() if "temp_attentions" not in path}
    found, summary = without_values(native, write(own_folder, "a.safetensors", some, **SIGNED))
    assert found.trigger == "in oil" and "trigger: in oil" in summary
    assert " steps (made for" not in summary and "has no metadata" not in summary


def test_info_and_loader_point_to_cores_loader_for_kinds_that_only_it_reads(
    native, base, own_folder
):
    import safetensors.torch

    tensors = {}
    for module in ("lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder"):
        tensors[f"{module}.lora_down.weight"] = torch.zeros(4, 8)
        tensors[f"{module}.lora_up.weight"] = torch.zeros(8, 4)
    safetensors.torch.save_file(tensors, own_folder / "kohya.safetensors", SIGNED)
    _, summary = without_values(native, "kohya.safetensors")
    assert "the text encoder's layers" in summary
    with pytest.raises(ValueError, match="the text encoder's layers.*LoraLoaderModelOnly"):
        native("lora").load_lora(base, "kohya.safetensors", 1.0)


def test_info_of_a_damaged_file_is_an_error(native, own_folder):
    (own_folder / "bad.safetensors").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not a usable LoRA file"):
        native("lora_info").lora_info("bad.safetensors")


def test_an_output_without_a_value_stops_only_what_is_connected_to_it(comfy, pairs, own_folder):
    from comfy_execution.graph_utils import ExecutionBlocker

    name = write(own_folder, "a.safetensors", pairs, **SIGNED)
    node = import_module(f"{comfy.__name__}.nodes.lora").LoraInfo
    steps, cfg, trigger, width, height, frames, strength, summary, fps, shift = node.execute(
        name
    ).result
    for value in (steps, cfg, width, height, frames, fps, shift):
        assert isinstance(value, ExecutionBlocker)
        assert "not a few-step LoRA: it recommends no steps, CFG or size" in value.message
    assert (trigger, strength) == ("in oil", 1.0) and "Not a few-step LoRA" in summary


def test_a_style_lora_is_sent_to_cores_loader(native, base, pairs, own_folder):
    some = {path: pair for path, pair in pairs.items() if "attentions" in path}
    name = write(own_folder, "style.safetensors", some)
    with pytest.raises(ValueError, match="not a few-step LoRA.*LoraLoaderModelOnly"):
        native("lora").load_lora(base, name, 1.0)
    named = write(own_folder, "part.safetensors", some, **{"mcm.family": "modelscope"})
    assert len(native("lora").load_lora(base, named, 1.0).patches) == len(some)


@pytest.mark.parametrize(
    ("key", "value"),
    [("timestep_scaling", "nan"), ("original_steps", "0"), ("steps", "four"), ("strength", "-1")],
)
def test_damaged_metadata_is_an_error(native, base, pairs, own_folder, key, value):
    name = write(own_folder, "odd.safetensors", pairs, **{f"mcm.{key}": value})
    with pytest.raises(ValueError, match=f"`mcm.{key}`='{value}' in the metadata of 'odd"):
        native("lora").load_lora(base, name, 1.0)
    with pytest.raises(ValueError, match=f"`mcm.{key}`"):
        native("lora_info").lora_info(name)


def test_other_weights_of_the_base_model_are_named_in_the_log(
    native, base, pairs, own_folder, caplog
):
    good = write(
        own_folder, "good.safetensors", pairs, **{"mcm.base_hash": base.model.mcm_info.base_hash}
    )
    native("lora").load_lora(base, good, 1.0)
    assert "other weights" not in caplog.text
    other = write(own_folder, "other.safetensors", pairs, **{"mcm.base_hash": "0" * 64})
    native("lora").load_lora(base, other, 1.0)
    assert "'other.safetensors' was trained on other weights" in caplog.text


@pytest.mark.parametrize("name", ["", "gone.safetensors", "../outside.safetensors", "sub", ".."])
def test_a_name_that_is_not_there_is_an_error(native, loras, name):
    (loras.parent / "outside.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="was not found.*models/loras.*sub/ink.safetensors"):
        native("lora").resolve_lora(name)


def test_an_empty_folder_still_gives_a_list(native, own_folder):
    assert native("lora").list_loras() == [""]
    with pytest.raises(ValueError, match="Found: none"):
        native("lora").resolve_lora("")


def test_only_models_of_this_pack_are_taken(native):
    with pytest.raises(ValueError, match="not a text-to-video model of this pack"):
        native("lora").load_lora(object(), "sub/ink.safetensors", 1.0)
