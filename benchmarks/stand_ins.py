"""Files in the forms that people have, with random weights: a Wan in ComfyUI's folder ``models``.

At the sizes of the published files or small ones (`tests/wan_files.py`). Time and memory do not
depend on what the weights are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import repository
import torch
from torch import Tensor, nn

from trainer.models.tiny_vae import TinyVae
from trainer.models.umt5 import TIED, xxl_config

sys.path.append(str(repository.ROOT / "tests"))
import wan_files  # noqa: E402

TRANSFORMER = "wan2.1_t2v_1.3B_fp16.safetensors"
TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
SPREAD = 0.1
"""Standard deviation of biases, and of the scales of norms around 1."""


def write_wan(models: Path, tiny: bool, device: torch.device | str = "cpu") -> Path:
    """Transformer, text encoder, VAE and tiny VAE of Wan 2.1 1.3B in ``models``; the transformer's
    path. 10 GB, drawn on ``device``, or small ones.
    """
    if tiny:
        wan_files.save_comfyui(models)
        return next((models / "diffusion_models").iterdir())
    write_text_encoder(models / "text_encoders" / TEXT, device)
    _save(
        wan_files.original_vae(_drawn(_vae(), device)), models / "vae" / "wan_2.1_vae.safetensors"
    )
    small = wan_files.tiny_vae_state(_filled(_on_meta(TinyVae), device))
    _save(small, models / "vae_approx" / "taew2_1.safetensors")
    return write_transformer(models / "diffusion_models" / TRANSFORMER, device)


def write_transformer(path: Path, device: torch.device | str = "cpu") -> Path:
    """Wan 2.1 T2V 1.3B in fp16, by its original names: 2.6 GiB."""
    from diffusers import WanTransformer3DModel

    sizes = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    network = _on_meta(lambda: WanTransformer3DModel(**sizes))
    return _save(wan_files.original(_drawn(network, device)), path)


def write_text_encoder(path: Path, device: torch.device | str = "cpu") -> Path:
    """UMT5-XXL with its matrices in scaled fp8, layer by layer, and a tokenizer of a few words:
    6.3 GiB.
    """
    from transformers import UMT5EncoderModel

    encoder = _on_meta(lambda: UMT5EncoderModel(xxl_config()))
    state: dict[str, Tensor] = {}
    for name, shape in _shapes(encoder).items():
        if name != TIED:
            state |= wan_files.scaled_fp8({name: _draw(name, shape, device)})
    pieces = wan_files.sentencepiece_model()
    state["spiece_model"] = torch.tensor(list(pieces), dtype=torch.uint8)
    return _save(state, path)


def _vae() -> nn.Module:
    from diffusers import AutoencoderKLWan

    return _on_meta(AutoencoderKLWan)


def _on_meta(build: Any) -> nn.Module:
    with torch.device("meta"):
        return build()


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def _drawn(network: nn.Module, device: torch.device | str) -> dict[str, Tensor]:
    return {name: _draw(name, shape, device) for name, shape in _shapes(network).items()}


def _filled(network: nn.Module, device: torch.device | str) -> nn.Module:
    network.load_state_dict(_drawn(network, device), assign=True)
    return network


def _draw(name: str, shape: torch.Size, device: torch.device | str) -> Tensor:
    """A weight in fp16, such that a layer's output is about as large as its input."""
    drawn = torch.randn(shape, dtype=torch.float32, device=device)
    if "norm" in name and not name.endswith("bias"):
        drawn = 1 + SPREAD * drawn
    else:
        drawn *= SPREAD if len(shape) < 2 else shape[1:].numel() ** -0.5
    return drawn.half().cpu()


def _save(state: dict[str, Tensor], path: Path) -> Path:
    return wan_files.save_half(state, path)
