"""Motion modules: every published layout gives the same weights, everything else is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file


def assert_same(module, adapter):
    expected = adapter.state_dict()
    assert module.weights.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(module.weights[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module.", "unet.module."])
def test_original_layout_gives_the_diffusers_weights(mcm, tiny, original_keys, prefix):
    state = {**original_keys(tiny.adapter, prefix), "animatediff_config": "settings"}
    module = mcm.motion_module.motion_module({"state_dict": state}, "mm")
    assert_same(module, tiny.adapter)
    assert (module.channels, module.layers) == ((32, 64, 64, 64), (2, 2, 2, 2))
    assert (module.mid_block, module.max_frames, module.depth) == (True, 32, 1)


def test_original_layout_agrees_with_diffusers_own_conversion(mcm, tiny, original_keys):
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    state = original_keys(tiny.adapter)
    expected = convert_animatediff_checkpoint_to_diffusers(dict(state))
    found = mcm.motion_module.convert_keys(state, "mm")
    assert {key for key in found if ".pos_embed." not in key} == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_module_without_middle_block_and_with_24_frames(mcm, adapter_without_mid, original_keys):
    module = mcm.motion_module.motion_module(original_keys(adapter_without_mid), "mm_sd_v15")
    assert_same(module, adapter_without_mid)
    assert (module.mid_block, module.max_frames) == (False, 24)


def test_depth_counts_the_transformer_blocks(mcm, tiny):
    from diffusers import MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_transformer_layers_per_block=2,
        motion_transformer_layers_per_mid_block=2,
    )
    assert mcm.motion_module.motion_module(adapter.state_dict(), "deep").depth == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encodings_become_exact(mcm, tiny, dtype):
    state = {key: value.to(dtype) for key, value in tiny.adapter.state_dict().items()}
    module = mcm.motion_module.motion_module(state, "half")
    for key, value in tiny.adapter.state_dict().items():
        if key.endswith(".pe"):
            assert torch.equal(module.weights[key], value)


def test_trained_encodings_are_kept(mcm, tiny, original_keys):
    state = original_keys(tiny.adapter)
    trained = {key: value + 0.1 for key, value in state.items() if key.endswith(".pe")}
    module = mcm.motion_module.motion_module({**state, **trained}, "trained")
    key = "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"
    expected = tiny.adapter.state_dict()[key] + 0.1
    assert torch.equal(module.weights[key], expected)


def test_encodings_that_differ_within_a_block_are_refused(mcm, tiny, original_keys):
    state = original_keys(tiny.adapter)
    key = next(key for key in state if "attention_blocks.1.pos_encoder" in key)
    with pytest.raises(mcm.motion_module.MotionModuleError, match="different positional"):
        mcm.motion_module.motion_module({**state, key: state[key] + 1}, "odd")


def test_files_and_folders_read_alike(mcm, tiny, original_keys, tmp_path):
    read = mcm.motion_module.read_motion_module
    folder = tmp_path / "Modul ü"
    tiny.adapter.save_pretrained(folder)
    torch.save({"state_dict": original_keys(tiny.adapter)}, tmp_path / "mm.ckpt")
    save_file(original_keys(tiny.adapter), tmp_path / "mm.safetensors")
    for path in (folder, tmp_path / "mm.ckpt", tmp_path / "mm.safetensors"):
        assert_same(read(path), tiny.adapter)


class Payload:
    """Its pickle would call a function when loaded without `weights_only`."""

    def __reduce__(self):
        return (pytest.fail, ("the file ran code",))


def test_pickles_run_no_code(mcm, tmp_path):
    torch.save({"state_dict": Payload()}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="bad.ckpt"):
        mcm.motion_module.read_motion_module(tmp_path / "bad.ckpt")


def test_truncated_files_are_named(mcm, tiny, tmp_path):
    save_file(tiny.adapter.state_dict(), tmp_path / "cut.safetensors")
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut.safetensors"):
        mcm.motion_module.read_motion_module(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"down_blocks.0.motion_modules.0.temporal_transformer.proj_in.lora_up.weight": 1},
            "is a LoRA",
        ),
        ({"conv_in.weight": 1}, "weights besides"),
        ({"down_blocks.0.attentions.0.proj_in.weight": 1}, "weights besides"),
    ],
)
def test_other_weights_are_refused(mcm, tiny, original_keys, extra, message):
    state = original_keys(tiny.adapter) | {key: torch.zeros(1) for key in extra}
    with pytest.raises(mcm.motion_module.MotionModuleError, match=message):
        mcm.motion_module.motion_module(state, "mm")


def test_an_image_checkpoint_is_no_motion_module(mcm, tiny):
    with pytest.raises(mcm.motion_module.MotionModuleError, match="not an AnimateDiff"):
        mcm.motion_module.motion_module(tiny.unet2d.state_dict(), "sd15")


def test_an_incomplete_module_is_refused(mcm, tiny, original_keys):
    state = {
        key: value
        for key, value in original_keys(tiny.adapter).items()
        if not key.startswith("down_blocks.1.")
    }
    with pytest.raises(mcm.motion_module.MotionModuleError, match="incomplete"):
        mcm.motion_module.motion_module(state, "mm")


def test_another_models_folder_is_refused(mcm, tiny, tmp_path):
    tiny.unet2d.save_config(tmp_path)
    with pytest.raises(mcm.motion_module.MotionModuleError, match="not a MotionAdapter"):
        mcm.motion_module.read_motion_module(tmp_path)
