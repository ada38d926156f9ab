"""Files in the model folders of the test server, so that every example finds what it names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

TRAINED = "trained ü.safetensors"
PROMPT = "a red star growing"


def stock(models: Path, tiny_model: Path) -> None:
    """LoRAs of the mini model, a ModelScope folder of tiny size and a PEFT folder for it.

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
    from trainer.lora.export import export_kohya
    from trainer.lora.metadata import build_metadata
    from trainer.lora.workflow import lora_workflow

    prompt = f"{PROMPT} {told.trigger}".strip()
    workflow = lora_workflow(told, path.name, prompt)
    export_kohya(pairs, path, build_metadata(told, pairs), extra={"workflow": workflow})


def _export_peft(pairs: dict[str, Any], folder: Path) -> None:
    from trainer.lora.export import export_peft

    export_peft(pairs, folder)
