"""Wan in ComfyUI: the nodes that run it, and where its published files lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..models.downloads import TEXT_ENCODERS, WAN_VAES, Download
from ..models.weights import FILE_SUFFIXES
from .record import BaseFiles, Graph, Loader

SHIFT = 5.0
"""Of few-step sampling; the levels of the teacher's trajectories are those too."""
_COMFYUI = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
COMFYUI = f"{_COMFYUI}/diffusion_models"
_WAN22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/diffusion_models"
SINGLE_FILES = {
    "Wan2.1-T2V-1.3B-Diffusers": "wan2.1_t2v_1.3B_fp16.safetensors",
    "Wan2.1-T2V-14B-Diffusers": "wan2.1_t2v_14B_fp16.safetensors",
    **{
        f"Wan2.2-T2V-A14B-Diffusers {which} noise": f"wan2.2_t2v_{which}_noise_14B_fp16.safetensors"
        for which in ("high", "low")
    },
}
"""Diffusers folders -> the file with the same weights, since ComfyUI loads no such folder."""
PUBLISHED = {
    "wan2.1_t2v_1.3B_fp16.safetensors": COMFYUI,
    "wan2.1_t2v_1.3B_bf16.safetensors": COMFYUI,
    "wan2.1_t2v_14B_fp16.safetensors": COMFYUI,
    "wan2.1_t2v_14B_bf16.safetensors": COMFYUI,
    "wan2.1_t2v_14B_fp8_e4m3fn.safetensors": COMFYUI,
    "wan2.1_t2v_14B_fp8_scaled.safetensors": COMFYUI,
    "Wan2.1-T2V-1.3B-Diffusers": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "Wan2.1-T2V-14B-Diffusers": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    **{
        f"wan2.2_t2v_{which}_noise_14B_{form}.safetensors": _WAN22
        for which in ("high", "low")
        for form in ("fp16", "fp8_scaled")
    },
    "Wan2.2-T2V-A14B-Diffusers": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    **{each.name: f"{_COMFYUI}/text_encoders" for each in TEXT_ENCODERS},
    **{each.name: f"{_COMFYUI}/vae" for each in WAN_VAES},
}


def graph(base: BaseFiles) -> Graph:
    """ComfyUI's own nodes. Text encoder and VAE are the published ones where the run's are not
    single files.
    """
    file = base.file or SINGLE_FILES.get(base.name, f"{base.name}.safetensors")
    text = _single(base.companions.get("text_encoder", ""), TEXT_ENCODERS)
    vae = _single(base.companions.get("vae", ""), WAN_VAES)
    widgets = {"clip_name": text, "type": "wan", "device": "default"}
    return Graph(
        loaders=(
            Loader("UNETLoader", {"unet_name": file, "weight_dtype": "default"}, file,
                   "diffusion_models"),
            Loader("CLIPLoader", widgets, text, "text_encoders"),
            Loader("VAELoader", {"vae_name": vae}, vae, "vae"),
        ),
        lora="LoraLoaderModelOnly",
        sampling=(Loader("ModelSamplingSD3", {"shift": base.shift or SHIFT}),),
        latents="EmptyHunyuanLatentVideo",
        note="All nodes are ComfyUI's own. *ModelSamplingSD3* sets the shift that the LoRA was "
        "trained with. *Load MCM LoRA* of this pack does the work of both nodes, and checks that "
        "the LoRA fits the model.",
    )  # fmt: skip


def _single(name: str, offered: Sequence[Download]) -> str:
    """``name`` where it is that of a single file, else the first that is ``offered``."""
    return name if Path(name).suffix.lower() in FILE_SUFFIXES else offered[0].name
