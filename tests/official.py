"""The official MCM LoRAs: their keys and shapes, stand-ins of full size, and the UNets they fit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from safetensors.torch import save_file
from torch import Tensor, nn

KEYS = Path(__file__).parent / "data_keys"
RANK = 64
FULL = {"block_out_channels": (320, 640, 1280, 1280)}
MODULES = {"modelscope": 482, "animatediff": 530}
OPTIONS = {
    "modelscope": {"sample_size": 32, "cross_attention_dim": 1024, "attention_head_dim": 64},
    "animatediff": {
        "cross_attention_dim": 768,
        "num_attention_heads": 8,
        "motion_num_attention_heads": 8,
        "use_motion_mid_block": True,
    },
}
CLASSES = {"modelscope": UNet3DConditionModel, "animatediff": UNetMotionModel}

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def official(name: str, rank: int = RANK) -> Shapes:
    """Path -> (shape of down, shape of up) of the reference checkpoint, from the committed tree."""

    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                walk(child, f"{path}.{key}" if path else key)
        else:
            assert isinstance(node, list)
            fan_in, fan_out, *kernel = node
            ones = (1, 1) if kernel else ()
            found[path] = ((rank, fan_in, *kernel, *kernel), (fan_out, rank, *ones))

    found: Shapes = {}
    walk(json.loads((KEYS / f"official_{name}.json").read_text(encoding="utf-8"))["modules"], "")
    return found


def full_size(name: str) -> nn.Module:
    """The real configuration; build it under ``torch.device("meta")``."""
    return CLASSES[name](**OPTIONS[name], **FULL)


def official_tensors(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a published file holds, at its size, every tensor another number."""
    tensors = {}
    for number, (path, (down, up)) in enumerate(official(name).items()):
        key = f"base_model.model.{path}"
        tensors[f"{key}.lora_A.weight"] = torch.full(down, number / 1024, dtype=dtype)
        tensors[f"{key}.lora_B.weight"] = torch.full(up, -number / 1024, dtype=dtype)
    return tensors


def write_official(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """A PEFT folder as published: the config knows the alpha, the keys have no `default`."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
