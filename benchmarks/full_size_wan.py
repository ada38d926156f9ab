"""Wan in ``full_size.py``: its files, and its velocity by the trainer and by ComfyUI alone."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import torch
from torch import Tensor

TOKENS, READ = 77, 512
"""Tokens of the prompt, and states that the transformer reads."""
LEVEL = 0.9
"""The level of noise, 0 to 1."""

Found = tuple[Tensor, float, float]
"""Velocity (1, 16, f, h, w), and the clock before and after loading."""


def write(folder: Path) -> None:
    """A transformer as ComfyUI's file, in fp16. What its forward does not use is small beside it:
    the VAE, and a text encoder as wide as the real one.
    """
    torch.set_default_dtype(torch.float32)
    from stand_ins import TRANSFORMER, wan_files, write_transformer

    wan_files.save_for_core(folder)
    write_transformer(folder / "diffusion_models" / TRANSFORMER)


def trainer(folder: Path, size: tuple[int, int, int]) -> Found:
    """By `load_model` and `VideoModel.predict`, in fp32."""
    from trainer.families import load_model

    begun = time.perf_counter()
    model = load_model(str(_file(folder)), torch.float32)
    loaded = time.perf_counter()
    latents, text = _inputs(size)
    with torch.inference_mode():
        return model.predict(latents, torch.tensor([LEVEL]), text), begun, loaded


def nodes(folder: Path, size: tuple[int, int, int]) -> Found:
    """By ComfyUI's UNETLoader and its WanModel. Its `apply_model` gives the clip, and the velocity
    is read from that. Raises AssertionError where it computes in another type.
    """
    folder_paths = importlib.import_module("folder_paths")
    folder_paths.add_model_folder_path("diffusion_models", str(_file(folder).parent))
    loader = importlib.import_module("nodes").UNETLoader()
    management = importlib.import_module("comfy.model_management")
    begun = time.perf_counter()
    (patcher,) = loader.load_unet(_file(folder).name, "default")
    management.load_models_gpu([patcher])
    loaded = time.perf_counter()
    kind = patcher.model.get_dtype_inference()
    assert kind == torch.float32, f"ComfyUI computes in {kind}, the trainer in float32"
    latents, text = _inputs(size)
    with torch.inference_mode():
        clip = patcher.model.apply_model(latents, torch.tensor([LEVEL]), c_crossattn=text)
    return (latents - clip) / LEVEL, begun, loaded


def _file(folder: Path) -> Path:
    return next((folder / "diffusion_models").iterdir())


def _inputs(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The same latents (1, 16, f, h, w) and random states of a prompt (1, 512, 4096), zero past its
    end, for both paths. The first latent holds one frame, every later one four.
    """
    frames, height, width = size
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 1 + frames // 4, height // 8, width // 8, generator=generator)
    text = torch.zeros(1, READ, 4096)
    text[:, :TOKENS] = torch.randn(1, TOKENS, 4096, generator=generator)
    return latents, text
