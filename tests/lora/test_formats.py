"""Every format reads to the same pairs; anything damaged, foreign or half-understood is refused by
name.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.lora.formats import PEFT_CONFIG, PEFT_WEIGHTS, peft_alphas, read_lora
from trainer.lora.pairs import LoraError, LoraPair, kohya_name

PATHS = ("down_blocks.0.attentions.0.proj_in", "mid_block.resnets.1.conv1", "up_blocks.1.ff.net.2")


def pairs_of(alpha: float = 4.0) -> dict[str, LoraPair]:
    """A Linear, a 3x3 and a 1x1 convolution of ranks 2, 3 and 4."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        PATHS[0]: LoraPair(random(2, 6), random(5, 2), alpha),
        PATHS[1]: LoraPair(random(3, 6, 3, 3), random(5, 3, 1, 1), alpha),
        PATHS[2]: LoraPair(random(4, 6, 1, 1), random(5, 4, 1, 1), alpha),
    }


def write(pairs: dict[str, LoraPair], file: Path, names: Callable[[str], tuple[str, str]]) -> Path:
    tensors = {}
    for path, pair in pairs.items():
        down, up = names(path)
        tensors |= {down: pair.down, up: pair.up}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def kohya_names(path: str) -> tuple[str, str]:
    name = kohya_name(path)
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


def peft_names(path: str) -> tuple[str, str]:
    return f"base_model.model.{path}.lora_A.weight", f"base_model.model.{path}.lora_B.weight"


def write_peft(pairs: dict[str, LoraPair], folder: Path, **config: object) -> Path:
    write(pairs, folder / PEFT_WEIGHTS, peft_names)
    ranks = {f"^{path}": pair.rank for path, pair in pairs.items() if pair.rank != 2}
    told = {"peft_type": "LORA", "r": 2, "rank_pattern": ranks, "lora_alpha": 4, **config}
    text = json.dumps(told)
    (folder / PEFT_CONFIG).write_text(text, encoding="utf-8")
    return folder


def assert_same(got: dict[str, LoraPair], wanted: dict[str, LoraPair]) -> None:
    assert set(got) == set(wanted)
    for path, pair in wanted.items():
        assert torch.equal(got[path].down, pair.down)
        assert torch.equal(got[path].up, pair.up)
        assert got[path].alpha == pair.alpha


def test_kohya_names_are_resolved_against_the_model(tmp_path: Path) -> None:
    pairs = pairs_of()
    tensors = {f"{kohya_name(path)}.alpha": torch.tensor(4.0) for path in pairs}
    for path, pair in pairs.items():
        down, up = kohya_names(path)
        tensors |= {down: pair.down, up: pair.up}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"mcm.family": "mini"})
    found = read_lora(tmp_path / "a.safetensors", PATHS)
    assert (found.format, found.metadata) == ("kohya", {"mcm.family": "mini"})
    assert_same(found.pairs, pairs)
    plain = read_lora(tmp_path / "a.safetensors")
    assert set(plain.pairs) == {kohya_name(path) for path in PATHS}
    assert_same(plain.resolved(PATHS).pairs, pairs)


def test_kohya_without_alpha_is_unscaled(tmp_path: Path) -> None:
    file = write(pairs_of(), tmp_path / "a.safetensors", kohya_names)
    alphas = {path: pair.alpha for path, pair in read_lora(file, PATHS).pairs.items()}
    assert alphas == {PATHS[0]: 2.0, PATHS[1]: 3.0, PATHS[2]: 4.0}


def test_ambiguous_underscore_names_are_an_error(tmp_path: Path) -> None:
    file = write({"a.b_c": pairs_of()[PATHS[0]]}, tmp_path / "a.safetensors", kohya_names)
    with pytest.raises(LoraError, match="could mean `a.b.c` or `a.b_c`"):
        read_lora(file, ["a.b.c", "a.b_c"])


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("unet.", "lora_A", "lora_B"),
        ("unet.", "lora.down", "lora.up"),
        ("", "lora_A", "lora_B"),
    ],
)
def test_diffusers_files_with_and_without_prefix(tmp_path: Path, prefix, down, up) -> None:
    def names(path: str) -> tuple[str, str]:
        return f"{prefix}{path}.{down}.weight", f"{prefix}{path}.{up}.weight"

    file = write(pairs_of(), tmp_path / "a.safetensors", names)
    found = read_lora(file)
    assert found.format.startswith("diffusers")
    assert [found.pairs[path].alpha for path in PATHS] == [2.0, 3.0, 4.0]


def test_diffusers_alpha_comes_from_the_header_or_from_alpha_tensors(tmp_path: Path) -> None:
    pair = pairs_of()[PATHS[0]]
    tensors = {
        "unet.a.b.lora_A.weight": pair.down,
        "unet.a.b.lora_B.weight": pair.up,
        "unet.c.lora_A.weight": pair.down.clone(),
        "unet.c.lora_B.weight": pair.up.clone(),
        "unet.c.alpha": torch.tensor(7.0),
    }
    header = json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"a.b": 5}})
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": header})
    found = read_lora(tmp_path / "a.safetensors").pairs
    assert (found["a.b"].alpha, found["c"].alpha) == (5.0, 7.0)


def test_peft_folder_and_the_file_inside_it_read_the_same(tmp_path: Path) -> None:
    folder = write_peft(pairs_of(), tmp_path / "lora")
    assert_same(read_lora(folder).pairs, pairs_of())
    assert_same(read_lora(folder / PEFT_WEIGHTS).pairs, pairs_of())
    assert read_lora(folder).format == "peft"


def test_peft_alpha_pattern_and_rslora(tmp_path: Path) -> None:
    pattern = {"^mid_block.resnets.1.conv1": 10, "net.2": 3}
    folder = write_peft(pairs_of(), tmp_path / "a", alpha_pattern=pattern)
    found = read_lora(folder).pairs
    assert [found[path].alpha for path in PATHS] == [4.0, 10.0, 3.0]
    found = read_lora(write_peft(pairs_of(), tmp_path / "b", use_rslora=True)).pairs
    assert [found[p].alpha / found[p].rank for p in PATHS] == pytest.approx(
        [4 / 2**0.5, 4 / 3**0.5, 4 / 4**0.5]
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "`bias`='all'"),
        ({"peft_type": "LOHA"}, "`peft_type`=LOHA"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "lora_ga"}, "changes the base"),
        ({"lora_bias": True}, "`lora_bias`=True"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "`layer_replication`"),
        ({"trainable_token_indices": [1]}, "`trainable_token_indices`"),
        ({"target_parameters": ["x"]}, "`target_parameters`"),
        ({"fan_in_fan_out": True}, "`fan_in_fan_out`"),
        ({"use_something_of_next_year": True}, "`use_something_of_next_year`"),
        ({"use_rslora": "false"}, "`use_rslora` of .* is 'false'; true or false is needed"),
        ({"r": 8}, "has rank 2, but adapter_config.json says 8"),
        ({"r": "2"}, "`r` or `rank_pattern` of .* is not a number: '2'"),
        ({"rank_pattern": {"conv1": 5}}, "has rank 3, but adapter_config.json says 5"),
        ({"lora_alpha": 0}, "alpha=0, which turns its update off"),
        ({"lora_alpha": "four"}, "not a number: 'four'"),
        ({"lora_alpha": None}, "not a number: None"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "not a plain module name"),
    ],
)
def test_peft_configs_that_are_more_than_plain_lora_are_refused(tmp_path, config, message) -> None:
    with pytest.raises(LoraError, match=message):
        read_lora(write_peft(pairs_of(), tmp_path / "lora", **config))


def test_peft_without_or_with_a_broken_config_is_refused(tmp_path: Path) -> None:
    folder = write_peft(pairs_of(), tmp_path / "lora")
    (folder / PEFT_CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(LoraError, match="not valid JSON"):
        read_lora(folder)
    (folder / PEFT_CONFIG).write_text("[1]", encoding="utf-8")
    with pytest.raises(LoraError, match="a JSON object is needed"):
        read_lora(folder)
    (folder / PEFT_CONFIG).unlink()
    with pytest.raises(LoraError, match="needs it beside the weights"):
        read_lora(folder)


def test_peft_alphas_match_whole_module_names_only() -> None:
    alpha = peft_alphas({"lora_alpha": 1, "alpha_pattern": {"conv1": 9}}, "x")
    assert (alpha("a.conv1", 2), alpha("a.myconv1", 2), alpha("conv1", 2)) == (9.0, 1.0, 9.0)


def test_what_is_no_lora_is_said_in_words(tmp_path: Path) -> None:
    save_file({"blocks.0.bias": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraError) as caught:
        read_lora(tmp_path / "a.safetensors")
    said = str(caught.value)
    assert "it holds biases: blocks.0.bias. Known are the files of ComfyUI, kohya" in said
    assert said.count("diffusers") == 1 and "but " not in said and "bare" not in said


def test_the_folder_of_a_run_names_its_lora(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.toml").write_text("", encoding="utf-8")
    with pytest.raises(LoraError, match=r'no LoRA yet.* `python -m trainer export ".*my run"`'):
        read_lora(run)
    (run / "my run.safetensors").write_bytes(b"")
    with pytest.raises(LoraError, match="is a run. Its LoRA is .*my run.safetensors"):
        read_lora(run)


def test_a_left_over_key_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {"lora_te_text_model_q.lora_up.weight": torch.ones(2, 2)}
    for path, pair in pairs_of().items():
        down, up = kohya_names(path)
        tensors |= {down: pair.down, up: pair.up}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(
        LoraError, match="1 of 7 weights.*text encoder.s layers: lora_te_text_model"
    ):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.lora_A.weight": torch.ones(2, 4)}, "`x`.*has no up matrix"),
        ({"x.weight": torch.ones(2, 4)}, "not a LoRA of a known format: it holds x.weight"),
        ({}, "no tensors at all"),
        (
            {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 3)},
            r"`up` \(out, rank",
        ),
        (
            {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2, 1, 1)},
            "two matrices of 2 or of 4 dimensions",
        ),
        (
            {"x.lora_A.weight": torch.full((2, 4), torch.nan), "x.lora_B.weight": torch.ones(4, 2)},
            "NaN or infinite",
        ),
        (
            {
                "x.lora_A.weight": torch.ones(2, 4, dtype=torch.int8),
                "x.lora_B.weight": torch.ones(4, 2),
            },
            "allowed are fp32, fp16 and bf16",
        ),
        (
            {
                "x.lora_A.weight": torch.ones(2, 4).to(torch.float8_e4m3fn),
                "x.lora_B.weight": torch.ones(4, 2).to(torch.float8_e4m3fn),
            },
            "holds float8_e4m3fn .*allowed are fp32, fp16 and bf16",
        ),
        (
            {
                "x.lora_A.weight": torch.ones(2, 4),
                "x.lora_B.weight": torch.ones(4, 2),
                "x.alpha": torch.zeros(()),
            },
            "alpha=0, which turns its update off",
        ),
        (
            {
                "x.lora_A.weight": torch.ones(2, 4),
                "x.lora.down.weight": torch.ones(2, 4),
                "x.lora_B.weight": torch.ones(4, 2),
            },
            "its down matrix twice",
        ),
        (
            {
                "x.lora_A.weight": torch.ones(2, 4),
                "x.lora_B.weight": torch.ones(4, 2),
                "x.alpha": torch.ones(3),
            },
            r"`x.alpha` has shape \(3,\)",
        ),
    ],
)
def test_unusable_tensors_are_refused(tmp_path: Path, tensors, message: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LoraError, match=message):
        read_lora(tmp_path / "a.safetensors")


def header_only(length: int, body: bytes) -> bytes:
    return length.to_bytes(8, "little") + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"x": list(range(20))}), "a Python pickle"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"", "0 bytes that do not begin with a safetensors header"),
        (b"\x02\x00", "2 bytes that do not begin"),
        (header_only(2**40, b"{}" + b" " * 40), r"a header of 1099511627776 bytes \(allowed"),
        (header_only(900, b'{"a":1}' + b" " * 40), "truncated file"),
        (header_only(3, b"{!}" + b" " * 40), "not JSON"),
        (header_only(7, b'{"a":1}' + b" " * 40), "broken header entry for `a`"),
        (header_only(200_000, b'{"a":' + b"[" * 199_995), "not JSON"),
    ],
)
def test_files_that_are_not_safetensors_are_named(tmp_path: Path, content, message: str) -> None:
    file = tmp_path / "look.safetensors"
    file.write_bytes(content)
    with pytest.raises(LoraError, match=message) as caught:
        read_lora(file)
    assert "look.safetensors" in str(caught.value)


def test_a_zip_and_a_pickle_folder_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    with pytest.raises(LoraError, match="a zip archive or a PyTorch"):
        read_lora(file)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(LoraError, match="found adapter_model.bin, a pickle"):
        read_lora(tmp_path)
    with pytest.raises(LoraError, match="There is no LoRA at"):
        read_lora(tmp_path / "absent.safetensors")


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write(pairs_of(), tmp_path / "a.safetensors", kohya_names).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for keep in (*range(0, len(whole), 61), len(whole) - 1):
        cut.write_bytes(whole[:keep])
        with pytest.raises(LoraError, match="cut.safetensors"):
            read_lora(cut)
    cut.write_bytes(whole)
    assert len(read_lora(cut).pairs) == 3


def test_overlapping_or_shifted_offsets_are_refused(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "x.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
            "x.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [4, 12]},
        }
    ).encode("utf-8")
    file = tmp_path / "a.safetensors"
    file.write_bytes(header_only(len(header), header + b"\0" * 12))
    with pytest.raises(LoraError, match="damaged data"):
        read_lora(file)


def test_read_tensors_do_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    file = write(pairs_of(), tmp_path / "a.safetensors", kohya_names)
    found = read_lora(file, PATHS)
    data = file.read_bytes()
    with file.open("r+b") as opened:  # in place: a memory map would see it
        opened.write(b"\xff" * len(data))
    assert torch.equal(found.pairs[PATHS[1]].up, pairs_of()[PATHS[1]].up)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.lora_mid.weight", "core tensor"),
        ("lora_unet_x.diff", "whole weights"),
        ("lora_unet_x.diff_b", "whole biases"),
        ("lora_unet_x.w_norm", "norm layers"),
        ("lora_unet_x.lora_up.bias", "biases"),
        ("lora_te_text_model_q.lora_up.weight", "text encoder"),
        ("bundle_emb.word.string_to_param", "embeddings"),
        ("base_model.model.conv_in.modules_to_save.weight", "modules_to_save"),
        ("base_model.model.x.lora_magnitude_vector.weight", "DoRA"),
    ],
)
@pytest.mark.parametrize("beside_a_plain_lora", [True, False])
def test_every_other_way_to_change_a_base_is_named(tmp_path, key, named, beside_a_plain_lora):
    tensors = {key: torch.ones(2, 2)}
    if beside_a_plain_lora:
        for path, pair in pairs_of().items():
            down, up = peft_names(path) if key.startswith("base_model") else kohya_names(path)
            tensors |= {down: pair.down, up: pair.up}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LoraError, match=rf"(it holds |model \().*{named}.*: "):
        read_lora(tmp_path / "a.safetensors")
