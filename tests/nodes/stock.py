"""Files in the model folders of the test server, so that every example finds what it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
OFFICIAL_MODULES = HERE.parent / "data_keys" / "official_animatediff.json"
TRAINED = "trained ü.safetensors"
WAN_LORA = "my-wan-style.safetensors"
EXPERT_LORAS = {"high": "my-wan22-high.safetensors", "low": "my-wan22-low.safetensors"}
PROMPT = "a red star growing"


def stock(models: Path, tiny_model: Path) -> None:
    """LoRAs of the mini model; a ModelScope folder and a motion module of tiny size, each with a
    PEFT folder.

    The two bundled example LoRAs are made up here only where the pack does not have them.
    """
    from trainer.paths import MINI

    loras = models / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    pairs = random_pairs(MINI / "unet", seed=0)
    for name in ("mini-poster.safetensors", "mini-neon.safetensors"):
        if not (MINI / "loras" / name).is_file():
            export(pairs, loras / name, card(title=name))
    export(pairs, loras / TRAINED, card(title="Trained", trigger="in ink", steps=2))
    export(pairs, loras / "other-family.safetensors", card(family="animatediff", base_model="SD"))
    shutil.copytree(tiny_model, models / "diffusers" / "text-to-video-ms-1.7b")
    _export_peft(random_pairs(tiny_model / "unet", seed=1), loras / "modelscopet2v-laion")
    stock_animatediff(models)
    stock_wan(models)


def stock_wan(models: Path) -> None:
    """What the examples of Wan name, of tiny size, and the node that reads its text encoder."""
    import wan_files

    from trainer.families import load_model
    from trainer.lora.adapter import add_lora, lora_parameters, lora_state

    file = wan_files.save_for_core(models)
    network = load_model(str(file)).network
    add_lora(network, 2, 2.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    facts = {"title": "Wan ink", "family": "wan", "frames": 9, "width": 64, "height": 48, "fps": 16,
             "prediction_type": "velocity", "shift": 5.0, "original_steps": 48}  # fmt: skip
    told = card(base_model=file.stem, base_file=file.name, **facts)
    export(lora_state(network), models / "loras" / WAN_LORA, told)
    for which, lora in EXPERT_LORAS.items():
        other = wan_files.EXPERTS["low" if which == "high" else "high"]
        name = wan_files.EXPERTS[which]
        shutil.copyfile(file, file.with_name(name))
        facts |= {"shift": 7.0, "original_steps": 24, "steps_allowed": (2, 4, 8)}
        facts |= {"part": f"{which} noise", "companions": {"other_expert": other}}
        facts |= {"low": 0.875, "high": 1.0} if which == "high" else {"low": 0.0, "high": 0.875}
        told = card(base_model=Path(name).stem, base_file=name, **facts)
        export(lora_state(network), models / "loras" / lora, told)
    shutil.copyfile(HERE / "tiny_text.py", models.parent / "custom_nodes" / "tiny_text.py")


def stock_animatediff(models: Path) -> None:
    """What the AnimateDiff example names, for the tiny image model of `tiny_checkpoint`.

    The LoRA covers the layers of the official ones. The node goes beside the pack.
    """
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
    from safetensors.torch import save_file

    torch.manual_seed(2)
    size = {"block_out_channels": (32, 64, 128, 128)}
    adapter = MotionAdapter(**size)
    (models / "animatediff_models").mkdir()
    save_file(adapter.state_dict(), models / "animatediff_models" / "mm_sd15_v2.safetensors")
    unet = UNet2DConditionModel(**size, cross_attention_dim=768, sample_size=8)
    weights = UNetMotionModel.from_unet2d(unet, adapter).state_dict()
    tree = json.loads(OFFICIAL_MODULES.read_text(encoding="utf-8"))["modules"]
    modules = paths_of(tree)
    pairs = {path: random_pair(weights[f"{path}.weight"].shape, rank=4) for path in modules}
    _export_peft(pairs, models / "loras" / "animatediff-laion")
    custom_nodes = models.parent / "custom_nodes"
    custom_nodes.mkdir(exist_ok=True)
    shutil.copyfile(HERE / "tiny_checkpoint.py", custom_nodes / "tiny_checkpoint.py")


def paths_of(tree: Any, path: str = "") -> list[str]:
    """Dotted paths of the leaves of a tree of modules."""
    if not isinstance(tree, dict):
        return [path]
    return [
        leaf
        for name, branch in tree.items()
        for leaf in paths_of(branch, f"{path}.{name}" if path else name)
    ]


def random_pair(shape: Sequence[int], rank: int) -> Any:
    """A LoRA of small weights for a linear layer or a convolution of ``shape``."""
    from trainer.lora.pairs import LoraPair

    wide, narrow = shape[2:], (1,) * len(shape[2:])
    down = torch.randn(rank, shape[1], *wide) * 0.05
    return LoraPair(down, torch.randn(shape[0], rank, *narrow) * 0.05, float(rank))


def random_pairs(unet: Path, seed: int, rank: int = 4) -> dict[str, Any]:
    """A LoRA of small random weights over every module that the trainer covers."""
    from diffusers import UNet3DConditionModel

    from trainer.lora.adapter import add_lora, lora_parameters, lora_state

    model = UNet3DConditionModel.from_pretrained(unet, torch_dtype=torch.float32)
    add_lora(model, rank, float(rank))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return lora_state(model)


def card(**changes: Any) -> Any:
    from trainer.lora.metadata import LoraCard

    facts = {
        "title": "Ink",
        "family": "modelscope",
        "base_model": "mini",
        "base_hash": "",
        "base_license": "Apache-2.0",
        "frames": 8,
        "width": 64,
        "height": 64,
        "fps": 8,
    }
    return LoraCard(**{**facts, **changes})


def export(pairs: dict[str, Any], path: Path, told: Any) -> None:
    """A file as the trainer exports it, its own workflow included."""
    from trainer.lora.export import export_file
    from trainer.lora.metadata import build_metadata
    from trainer.lora.workflow import lora_workflow

    prompt = f"{PROMPT} {told.trigger}".strip()
    workflow = lora_workflow(told, path.name, prompt)
    export_file(pairs, path, build_metadata(told, pairs), extra={"workflow": workflow})


def _export_peft(pairs: dict[str, Any], folder: Path) -> None:
    from trainer.lora.export import export_peft

    export_peft(pairs, folder)
