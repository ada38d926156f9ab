"""Files to download by hand: name, size, licence, source, and the folder to put them in.

Repositories are those of Hugging Face. The program itself never downloads anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A file or folder; ``size`` in GB or MB (10^9, 10^6 bytes), ``folder`` below ComfyUI's."""

    name: str
    size: str
    licence: str
    repository: str
    folder: str

    def text(self) -> str:
        return (
            f"{self.name} ({self.size}, {self.licence}) from {self.repository}, into "
            f"ComfyUI/{self.folder} or any folder"
        )


@dataclass(frozen=True)
class Need:
    """A part that a base model lacks. ``setting`` takes its path; ``text`` says what it is for."""

    part: str
    setting: str
    text: str
    downloads: tuple[Download, ...] = ()


MOTION_MODULES = (
    Download("mm_sd_v15_v2.ckpt", "1.8 GB", "Apache-2.0", "guoyww/animatediff",
             "models/animatediff_models"),
    Download("motion_module/mm_sd15_v2.safetensors", "0.9 GB", "Apache-2.0",
             "conrevo/AnimateDiff-A1111", "models/animatediff_models"),
)  # fmt: skip
VAES = (
    Download("vae-ft-mse-840000-ema-pruned.safetensors", "0.33 GB", "MIT",
             "stabilityai/sd-vae-ft-mse-original", "models/vae"),
)  # fmt: skip
IMAGE_MODELS = (
    Download("v1-5-pruned-emaonly.safetensors", "4.3 GB", "CreativeML Open RAIL-M",
             "stable-diffusion-v1-5/stable-diffusion-v1-5", "models/checkpoints"),
)  # fmt: skip
VIDEO_MODELS = (
    Download("text-to-video-ms-1.7b (the folder)", "3.7 GB in fp16",
             "CC-BY-NC-4.0: no commercial use", "ali-vilab/text-to-video-ms-1.7b",
             "models/diffusers"),
)  # fmt: skip
FEATURE_NETWORKS = (
    Download("config.json and model.safetensors", "88 MB", "Apache-2.0", "facebook/dinov2-small",
             "models/dinov2/dinov2-small"),
    Download("models/image_encoder/model.safetensors (CLIP vision)", "2.5 GB", "Apache-2.0",
             "h94/IP-Adapter", "models/clip_vision"),
)  # fmt: skip
