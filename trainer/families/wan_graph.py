"""Wan in ComfyUI: the nodes that run it, and where its published files lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..diffusion.noise import RectifiedFlow
from ..models.downloads import TEXT_ENCODERS, WAN_VAES, Download
from ..models.wan import HIGH, LOW
from ..models.weights import FILE_SUFFIXES
from ..paths import bundled
from .record import BaseFiles, Graph, Half, Loader, OtherNetwork
from .wan_experts import EXPERTS

SHIFT, TEACHER_SHIFT = 5.0, 8.0
"""Of few-step sampling, whose levels are those of the teacher's trajectories too, and of the base
model's own sampling: Wan's value for 1.3B, ComfyUI's for every size.
"""
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""Wan's own negative prompt, with which its quality is published."""


def flow_at(shift: float | None = None) -> RectifiedFlow:
    """The levels of a Wan; one whose notes name a ``shift`` samples with it in any steps."""
    return RectifiedFlow(shift or SHIFT, teacher_shift=None if shift else TEACHER_SHIFT)


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
    single files. A small Wan is loaded by this pack.
    """
    if "vae" in base.companions and base.companions["vae"] == base.companions.get("tiny_vae"):
        directory = "" if bundled(base.name) else "diffusers"
        widgets = {"model_name": base.name, "weight_dtype": "default"}
        return Graph((Loader("MCM_LoadVideoModel", widgets, base.name, directory),))
    text = _single(base.companions.get("text_encoder", ""), TEXT_ENCODERS)
    vae = _single(base.companions.get("vae", ""), WAN_VAES)
    widgets = {"clip_name": text, "type": "wan", "device": "default"}
    return Graph(
        loaders=(
            _network(base.file or SINGLE_FILES.get(base.name, f"{base.name}.safetensors")),
            Loader("CLIPLoader", widgets, text, "text_encoders"),
            Loader("VAELoader", {"vae_name": vae}, vae, "vae"),
        ),
        lora="LoraLoaderModelOnly",
        sampling=(Loader("ModelSamplingSD3", {"shift": base.shift or SHIFT}),),
        latents="EmptyHunyuanLatentVideo",
        note=NOTE if not base.part else PAIR_NOTE.format(base.part),
        other=_other(base) if base.part else None,
    )


NOTE = (
    "All nodes are ComfyUI's own. *ModelSamplingSD3* sets the shift that the LoRA was trained "
    "with. *Load MCM LoRA* of this pack does the work of both nodes, and checks that the LoRA fits "
    "the model."
)
PAIR_NOTE = (
    "All nodes are ComfyUI's own. This LoRA is for the **{}** expert of Wan 2.2 14B; on the other "
    "one it makes a wrong picture, without an error. The other expert is sampled here in many "
    "steps, as without a LoRA. If you have trained a LoRA for it too, put a second "
    "*LoraLoaderModelOnly* before its *ModelSamplingSD3*, set its sampler to CFG 1 and, for high "
    "noise: euler, steps 2, end_at_step 1; for low noise: lcm, steps 4, start_at_step 2. Both "
    "halves meet at any even number of steps with this shift."
)
TEACHER_STEPS = 20


def _network(file: str) -> Loader:
    widgets = {"unet_name": file, "weight_dtype": "default"}
    return Loader("UNETLoader", widgets, file, "diffusion_models")


def _other(base: BaseFiles) -> OtherNetwork:
    """The other expert. A student of the first leads to the states of the second in one step of
    Euler, which is its consistency function; more steps of it need noise that no node of ComfyUI's
    adds.
    """
    first = base.part == EXPERTS[LOW].title
    other = EXPERTS[HIGH if first else LOW]
    name = f"Wan2.2-T2V-A14B-Diffusers {other.title}"
    its = Half(TEACHER_STEPS, "euler", other.cfg)
    own = Half(4, "lcm") if first else Half(2, "euler")
    file = base.companions.get("other_expert", "")
    if Path(file).suffix.lower() not in FILE_SUFFIXES:
        file = SINGLE_FILES[name]
    return OtherNetwork(_network(file), first, its, own, NEGATIVE)


def _single(name: str, offered: Sequence[Download]) -> str:
    """``name`` where it is that of a single file, else the first that is ``offered``."""
    return name if Path(name).suffix.lower() in FILE_SUFFIXES else offered[0].name
