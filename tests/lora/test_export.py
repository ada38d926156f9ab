"""What is exported comes back equal, says what it is, and a failed export leaves the old file
alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import peft
import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors import safe_open

from trainer.lora.adapter import add_lora, apply_lora, lora_parameters, lora_state
from trainer.lora.export import export_kohya, export_peft, peft_config
from trainer.lora.files import MAX_HEADER_WRITE
from trainer.lora.formats import PEFT_CONFIG, read_lora
from trainer.lora.inspect import inspect_file
from trainer.lora.pairs import LoraError, LoraPair, base_modules

META = {"mcm.family": "mini", "mcm.base_model": "mini", "ss_network_dim": "3"}


def tiny(seed: int = 0, width: int = 16) -> UNet3DConditionModel:
    torch.manual_seed(seed)
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return unet.eval().requires_grad_(False)


def student(width: int = 16) -> UNet3DConditionModel:
    unet = tiny(width=width)
    add_lora(unet, rank=3, alpha=6)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return unet


def assert_same(got: dict[str, LoraPair], wanted: dict[str, LoraPair], dtype=torch.float32) -> None:
    assert set(got) == set(wanted)
    for path, pair in wanted.items():
        assert got[path].alpha == pair.alpha
        assert torch.equal(got[path].down, pair.down.to(dtype))
        assert torch.equal(got[path].up, pair.up.to(dtype))


def test_formats_round_trip_exactly(tmp_path: Path) -> None:
    unet = student()
    pairs = lora_state(unet)
    export_kohya(unet, tmp_path / "a.safetensors", META, dtype="fp32")
    from_kohya = read_lora(tmp_path / "a.safetensors", unet)
    assert_same(from_kohya.pairs, pairs)
    export_peft(from_kohya.pairs, tmp_path / "folder")
    from_peft = read_lora(tmp_path / "folder")
    assert (from_kohya.format, from_peft.format) == ("kohya", "peft")
    assert_same(from_peft.pairs, pairs)
    export_kohya(from_peft.pairs, tmp_path / "b.safetensors", META, dtype="fp32", base=tiny())
    # The same content is the same bytes, so that a LoRA keeps its hash when it is exported again.
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_stored_rounded_once(tmp_path: Path, name: str, kind) -> None:
    unet = student()
    export_kohya(unet, tmp_path / "a.safetensors", META, dtype=name)
    found = read_lora(tmp_path / "a.safetensors", unet)
    assert_same(found.pairs, lora_state(unet), kind)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.get_tensor("lora_unet_mid_block_resnets_0_conv1.alpha").dtype == torch.float32


def test_hashes_cover_what_they_say(tmp_path: Path) -> None:
    unet = student()
    one = export_kohya(unet, tmp_path / "a.safetensors", META)
    two = export_kohya(unet, tmp_path / "b.safetensors", {**META, "workflow": "{}"})
    data = (tmp_path / "a.safetensors").read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert one.sha256 == hashlib.sha256(data).hexdigest()
    assert one.autov2 == one.sha256[:10]
    assert one.tensors_sha256 == hashlib.sha256(body).hexdigest()
    assert (one.size, one.modules) == (len(data), len(lora_state(unet)))
    assert one.sha256 != two.sha256
    assert one.tensors_sha256 == two.tensors_sha256
    found = read_lora(tmp_path / "a.safetensors")
    assert found.metadata["sshs_model_hash"] == one.tensors_sha256
    assert found.metadata["modelspec.hash_sha256"] == f"0x{one.tensors_sha256}"
    assert found.hash_ok is True
    (tmp_path / "a.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert read_lora(tmp_path / "a.safetensors").hash_ok is False


def test_extra_metadata_is_stored_and_may_not_overwrite(tmp_path: Path) -> None:
    unet = student()
    file = tmp_path / "a.safetensors"
    export_kohya(unet, file, META, extra={"workflow": '{"nodes": []}'})
    assert read_lora(file).metadata["workflow"] == '{"nodes": []}'
    with pytest.raises(LoraError, match="would overwrite metadata: mcm.family"):
        export_kohya(unet, file, META, extra={"mcm.family": "other"})
    with pytest.raises(LoraError, match="Metadata `steps` is a int"):
        export_kohya(unet, file, {"steps": 4})  # type: ignore[dict-item]


def test_a_failed_export_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    unet = student()
    file = tmp_path / "a.safetensors"
    export_kohya(unet, file, META)
    before = file.read_bytes()
    with pytest.raises(LoraError, match="Shorten `workflow`"):
        export_kohya(unet, file, META, extra={"workflow": "x" * MAX_HEADER_WRITE})
    with pytest.raises(LoraError, match="does not fit the loaded model"):
        export_kohya(lora_state(unet), file, META, base=tiny(width=24))
    with torch.no_grad():
        lora_parameters(unet)[0].fill_(1e6)
    with pytest.raises(LoraError, match="too large for fp16"):
        export_kohya(unet, file, META)
    with torch.no_grad():
        lora_parameters(unet)[0].fill_(torch.nan)
    with pytest.raises(LoraError, match="NaN or infinite"):
        export_kohya(unet, file, META)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_bad_targets_are_named(tmp_path: Path) -> None:
    pairs = {"a.b": LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    with pytest.raises(LoraError, match="must end in .safetensors"):
        export_kohya(pairs, tmp_path / "a.ckpt", META)
    with pytest.raises(LoraError, match="allowed are fp16, bf16, fp32"):
        export_kohya(pairs, tmp_path / "a.safetensors", META, dtype="fp8")
    with pytest.raises(LoraError, match="nothing to export"):
        export_kohya({}, tmp_path / "a.safetensors", META)
    with pytest.raises(LoraError, match="share the kohya name `lora_unet_a_b`"):
        export_kohya({**pairs, "a_b": pairs["a.b"]}, tmp_path / "a.safetensors", META)
    (tmp_path / "taken").mkdir()
    with pytest.raises(LoraError, match="exists already"):
        export_peft(pairs, tmp_path / "taken")


def test_peft_itself_loads_the_folder_and_merges_to_the_same_weights(tmp_path: Path) -> None:
    pairs = lora_state(student())
    # One module of another rank and alpha: the patterns must name it, and it alone.
    odd = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    pairs[odd] = LoraPair(pairs[odd].down[:2], pairs[odd].up[:, :2], 5.0)
    export_peft(pairs, tmp_path / "lora", base_model="mini")
    config = json.loads((tmp_path / "lora" / PEFT_CONFIG).read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (3, 6)
    assert config["rank_pattern"] == {f"^{odd}": 2}
    assert config["alpha_pattern"] == {f"^{odd}": 5}
    loaded = peft.PeftModel.from_pretrained(tiny(), tmp_path / "lora")
    merged = base_modules(loaded.merge_and_unload())
    plain = tiny()
    apply_lora(plain, read_lora(tmp_path / "lora").pairs)
    ours = base_modules(plain)
    assert set(merged) == set(ours)
    assert all(torch.equal(merged[path].weight, ours[path].weight) for path in ours)
    assert not torch.equal(ours[odd].weight, base_modules(tiny())[odd].weight)


def test_peft_config_chooses_the_common_rank() -> None:
    def pair(rank: int, alpha: float) -> LoraPair:
        return LoraPair(torch.ones(rank, 2), torch.ones(2, rank), alpha)

    config = peft_config({"a": pair(2, 2.0), "b": pair(4, 2.5), "c": pair(4, 2.5)})
    assert (config["r"], config["lora_alpha"]) == (4, 2.5)
    assert config["rank_pattern"] == {"^a": 2}
    assert config["alpha_pattern"] == {"^a": 2}


def test_a_lora_of_another_width_is_refused_by_the_model(tmp_path: Path) -> None:
    export_kohya(student(width=24), tmp_path / "a.safetensors", META)
    plain = tiny()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    found = read_lora(tmp_path / "a.safetensors", plain)
    with pytest.raises(LoraError, match=r"unknown size of ModelScope.*\(text layers 24 wide\)"):
        apply_lora(plain, found.pairs)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_inspect_tells_what_the_file_is(tmp_path: Path) -> None:
    unet = student(width=64)
    told = {key: value for key, value in META.items() if not key.startswith("mcm")}
    done = export_kohya(unet, tmp_path / "a.safetensors", {**told, "workflow": "y" * 500})
    report = inspect_file(tmp_path / "a.safetensors", unet)
    assert (report.family, report.format, report.rank, report.alpha) == ("mini", "kohya", "3", "6")
    assert (report.sha256, report.autov2, report.size) == (done.sha256, done.autov2, done.size)
    assert report.modules == tuple(sorted(lora_state(unet)))
    assert (report.unresolved, report.dtypes, report.hash_ok) == ((), ("float16",), True)
    text = report.text()
    assert "the built-in mini model" in text
    assert done.autov2 in text
    assert "matches the tensors" in text
    assert "y" * 101 not in text and "(500 characters)" in text


def test_inspect_prefers_metadata_and_lists_unknown_modules(tmp_path: Path) -> None:
    pairs = {"a.b": LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    pairs["a.c"] = LoraPair(torch.ones(2, 2), torch.ones(2, 2), 1.0)
    told = {"mcm.family": "modelscope", "mcm.base_model": "ZeroScope v2"}
    export_kohya(pairs, tmp_path / "a.safetensors", told)
    report = inspect_file(tmp_path / "a.safetensors", ["a.b"])
    assert (report.family, report.base) == ("modelscope", "ZeroScope v2")
    assert (report.rank, report.ranks) == ("1 to 2", {1: 1, 2: 1})
    assert report.unresolved == ("lora_unet_a_c",)
    assert "2, 1 unknown" in report.text()
    export_peft(pairs, tmp_path / "folder")
    report = inspect_file(tmp_path / "folder")
    assert (report.format, report.family, report.hash_ok) == ("peft", "unknown", None)
    with pytest.raises(LoraError, match="There is no LoRA"):
        inspect_file(tmp_path / "absent.safetensors")
