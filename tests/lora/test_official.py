"""Files with the keys, shapes and sizes of the official LoRAs: taken whole, or refused by name."""

from __future__ import annotations

import pytest
import torch
from official import MODULES, full_size, official, official_tensors, write_official

from trainer.lora.adapter import add_lora, apply_lora, lora_state, start_from
from trainer.lora.few_step import fit_few_step
from trainer.lora.formats import read_lora
from trainer.lora.match import match
from trainer.lora.pairs import LoraError, weight_shapes

WANTS = {
    "modelscope": "ModelScope text-to-video",
    "animatediff": "AnimateDiff on Stable Diffusion 1.5",
}
OTHER = {"modelscope": "animatediff", "animatediff": "modelscope"}


@pytest.fixture(scope="module")
def unets():
    with torch.device("meta"):
        return {name: full_size(name).requires_grad_(False) for name in MODULES}


def fit(found, unets, name):
    return fit_few_step(found, unets[name], name, f"full {name}", "official")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", MODULES)
def test_the_sampler_takes_every_key(name, dtype, unets, tmp_path):
    folder = write_official(tmp_path / name, official_tensors(name, dtype))
    found = read_lora(folder, unets[name])
    report = match(found.pairs, unets[name])
    assert len(report.matched) == MODULES[name]
    assert not (report.missing or report.unexpected or report.wrong_shape)
    pairs = fit(found, unets, name)
    assert {path: (p.down.shape, p.up.shape) for path, p in pairs.items()} == official(name)
    assert {pair.alpha for pair in pairs.values()} == {64.0}
    apply_lora(unets[name], pairs)()
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("name", MODULES)
def test_a_lora_of_the_other_family_is_refused(name, unets, tmp_path):
    folder = write_official(tmp_path / name, official_tensors(name, torch.float16))
    with pytest.raises(LoraError, match=f"does not fit.*made for {WANTS[name]}.*loaded is"):
        fit(read_lora(folder), unets, OTHER[name])
    cut = folder / "adapter_model.safetensors"
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(LoraError, match=f"truncated file.*of a LoRA for {WANTS[name]}"):
        read_lora(folder)
    cut.unlink()


@pytest.mark.parametrize("name", MODULES)
def test_a_part_of_one_is_refused(name, unets, tmp_path):
    tensors = official_tensors(name, torch.float16)
    last = sorted(tensors)[-1]
    half = write_official(tmp_path / "half", {k: v for k, v in tensors.items() if k != last})
    with pytest.raises(LoraError, match="has no up matrix; the file is incomplete"):
        read_lora(half)
    module = last.removesuffix(".lora_B.weight")
    fewer = {key: value for key, value in tensors.items() if not key.startswith(module)}
    part = write_official(tmp_path / "part", fewer)
    message = f"leaves out 1: .*it is made for {WANTS[name]}.*download it again"
    with pytest.raises(LoraError, match=message):
        fit(read_lora(part), unets, name)


@pytest.mark.parametrize("rank", [64, 72])
def test_training_continues_from_one_exactly(rank):
    """At small size: the same update, whatever the rank of the adapter."""
    from diffusers import UNetMotionModel

    def fresh():
        torch.manual_seed(0)
        size = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16}
        blocks = {
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        }
        return UNetMotionModel(**size, **blocks).requires_grad_(False)

    teacher = fresh()
    add_lora(teacher, 64, 64.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    pairs = lora_state(teacher)
    for pair in pairs.values():
        pair.up.normal_(generator=generator)
    student = fresh()
    add_lora(student, rank, float(rank), seed=5)
    start_from(student, pairs)
    for path, pair in lora_state(student).items():
        assert (pair.rank, pair.alpha) == (rank, float(rank))
        assert torch.equal(pair.down[:64], pairs[path].down)
        assert not pair.up[:, 64:].any() and pair.down[64:].any(dim=1).all()
        torch.testing.assert_close(pair.delta(), pairs[path].delta(), rtol=1e-5, atol=1e-5)
    low = fresh()
    add_lora(low, 8, 8.0)
    with pytest.raises(LoraError, match="rank 64, the adapter 8"):
        start_from(low, pairs)
    assert set(weight_shapes(low)) >= set(pairs)
